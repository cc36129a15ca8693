//! The numbers in a GGUF file that a reader must not trust, found by a reader of its own.

/// What a number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How many tensors, or keys.
    Count,
    /// Bytes of a string.
    StringBytes,
    /// Elements of an array.
    ArrayLength,
    /// Type of a value, or of an array's elements.
    ValueType,
    /// Dimensions of a tensor.
    NDims,
    /// One of them.
    Dim,
    /// Type of a tensor.
    TensorType,
    /// Where a tensor begins in the data.
    Offset,
}

/// A number in a file.
#[derive(Clone, Debug)]
pub struct Field {
    /// What it says.
    pub kind: Kind,
    /// The key or the tensor that it belongs to.
    pub owner: String,
    at: usize,
    n_bytes: usize,
}

impl Field {
    /// The number in this file.
    pub fn get(&self, file: &[u8]) -> u64 {
        let mut bytes = [0; 8];
        bytes[..self.n_bytes].copy_from_slice(&file[self.at..self.at + self.n_bytes]);
        u64::from_le_bytes(bytes)
    }

    /// The file with another number, cut to the bytes that there are for it.
    pub fn set(&self, file: &[u8], number: u64) -> Vec<u8> {
        let mut file = file.to_vec();
        file[self.at..self.at + self.n_bytes].copy_from_slice(&number.to_le_bytes()[..self.n_bytes]);
        file
    }
}

/// Strings of an array of which the lengths are listed: the first ones, and one of so many.
const LISTED: (u64, u64) = (4, 64);

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    owner: String,
    fields: Vec<Field>,
}

impl Reader<'_> {
    fn number(&mut self, n_bytes: usize, kind: Kind) -> u64 {
        let field = Field { kind, owner: self.owner.clone(), at: self.at, n_bytes };
        let number = field.get(self.file);
        self.fields.push(field);
        self.at += n_bytes;
        number
    }

    fn string(&mut self) -> String {
        let n = usize::try_from(self.number(8, Kind::StringBytes)).unwrap();
        self.at += n;
        String::from_utf8(self.file[self.at - n..self.at].to_vec()).unwrap()
    }

    /// A value, or an element of an array.
    fn value(&mut self, ty: u64) {
        match ty {
            0 | 1 | 7 => self.at += 1,
            2 | 3 => self.at += 2,
            4..=6 => self.at += 4,
            10..=12 => self.at += 8,
            8 => drop(self.string()),
            9 => {
                let ty = self.number(4, Kind::ValueType);
                let n = self.number(8, Kind::ArrayLength);
                for i in 0..n {
                    let n_fields = self.fields.len();
                    self.value(ty);
                    if i >= LISTED.0 && i % LISTED.1 != 0 {
                        self.fields.truncate(n_fields);
                    }
                }
            }
            other => panic!("value type {other}"),
        }
    }
}

/// The numbers of a valid file.
pub fn fields(file: &[u8]) -> Vec<Field> {
    let mut reader = Reader { file, at: 8, owner: "header".to_owned(), fields: Vec::new() };
    let n_tensors = reader.number(8, Kind::Count);
    for _ in 0..reader.number(8, Kind::Count) {
        reader.owner = reader.string();
        let ty = reader.number(4, Kind::ValueType);
        reader.value(ty);
    }
    for _ in 0..n_tensors {
        reader.owner = reader.string();
        for _ in 0..reader.number(4, Kind::NDims) {
            reader.number(8, Kind::Dim);
        }
        reader.number(4, Kind::TensorType);
        reader.number(8, Kind::Offset);
    }
    reader.fields
}
