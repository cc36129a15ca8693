//! NumPy files of f32 matrices, written row by row.
//!
//! Format version 1.0: magic, version, length of the header, and a Python dictionary padded to a multiple of 64 bytes
//! (NumPy Enhancement Proposal 1).

use std::io::{self, Write};

/// Writes the header of a little-endian (rows, cols) f32 matrix; the rows follow.
///
/// # Errors
/// Those of the sink.
pub fn write_header(sink: &mut impl Write, rows: usize, cols: usize) -> io::Result<()> {
    /// Magic, version and length of the header.
    const BEFORE: usize = 6 + 2 + 2;
    let dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let length = (BEFORE + dictionary.len() + 1).next_multiple_of(64) - BEFORE;
    sink.write_all(b"\x93NUMPY\x01\x00")?;
    sink.write_all(&u16::try_from(length).map_err(io::Error::other)?.to_le_bytes())?;
    writeln!(sink, "{dictionary:width$}", width = length - 1)
}

/// Writes numbers behind the header.
///
/// # Errors
/// Those of the sink.
pub fn write_values(sink: &mut impl Write, values: &[f32]) -> io::Result<()> {
    values.iter().try_for_each(|value| sink.write_all(&value.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        let mut file = Vec::new();
        write_header(&mut file, 3, 49152).unwrap();
        // numpy.save(file, numpy.zeros((3, 49152), "<f4")) begins with these bytes.
        let mut expected =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 49152), }".to_vec();
        expected.resize(127, b' ');
        expected.push(b'\n');
        assert_eq!(file, expected);
    }
}
