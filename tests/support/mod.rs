//! What several tests need.
#![allow(dead_code, reason = "every test uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Display;
use std::io::Write as _;

pub mod brute_force;
pub mod compare;
pub mod library;
pub mod metadata;
pub mod model;
pub mod random;
pub mod rig;
pub mod session_file;
pub mod tiny_model;
pub mod workshop;

/// Says that a test did without CUDA devices, past the test harness, which would swallow it.
pub fn say_skipped_on_cuda(why: &impl Display) {
    std::io::stderr().write_all(format!("SKIPPED on CUDA devices: {why}\n").as_bytes()).unwrap();
}
