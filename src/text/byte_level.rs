//! The byte-level alphabet of GPT-2: one printable character for each of the 256 byte values.
//!
//! Bytes that are printable in Latin-1 stand for themselves; the other 68 (controls, space, 0x7F..=0xA0, soft hyphen)
//! are numbered in order from U+0100.

/// Bytes 0x00..=0x20 come first among those without a printable character of their own.
const LOW: u32 = 0x21;
/// Then 0x7F..=0xA0.
const MIDDLE: u32 = 0xA0 - 0x7F + 1;

/// The byte that `c` stands for, or `None` for a character outside the alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100.. if code < 0x100 + LOW => code - 0x100,
        0x100.. if code < 0x100 + LOW + MIDDLE => code - 0x100 - LOW + 0x7F,
        0x100.. if code == 0x100 + LOW + MIDDLE => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes that a token spells in the alphabet, or `None` if one of its characters is not in it.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<u8>>());
    }

    #[test]
    fn known_characters() {
        assert_eq!(bytes_of("ĠaĊ"), Some(b" a\n".to_vec()));
        assert_eq!(bytes_of("Ń"), Some(vec![0xAD]));
        assert_eq!(bytes_of("a b"), None);
    }
}
