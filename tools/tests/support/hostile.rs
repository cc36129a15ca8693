//! For tests of damaged and hostile input: what became of it, with a bound on memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use longgen_tools::convert::types::MatrixType;
use longgen_tools::plan::AttentionArgs;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::convert_with;

/// Numbers that are not there, and that wrap.
pub const HUGE: [u64; 9] = [
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    u64::MAX / 8,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// What a hole would be filled with at most: more than all tests take together, less than what a number makes up.
const MEMORY: u64 = 3 << 30;

/// Makes an allocation beyond [`MEMORY`] abort the test.
pub fn limit_memory() {
    static ONCE: Once = Once::new();
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    ONCE.call_once(|| setrlimit(Resource::Data, limit).unwrap());
}

/// What became of it; the message of the failure if it was refused.
pub type Outcome = Result<(), String>;

/// Tries something; `what` is for the panic that must not be.
pub fn outcome(what: &str, attempt: impl FnOnce() -> Outcome) -> Outcome {
    limit_memory();
    let outcome = catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| panic!("{what}: panicked"));
    assert!(outcome != Err(String::new()), "{what}: refused without a word");
    outcome
}

/// Converts what lies there, without flags.
pub fn convert_path(path: &Path) -> Outcome {
    convert_with(path, MatrixType::Keep, &AttentionArgs::default())
        .map(|_| ())
        .map_err(|error| format!("{error:#}"))
}
