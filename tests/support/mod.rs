//! What several tests need.
#![allow(dead_code, reason = "every test uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod compare;
pub mod library;
pub mod metadata;
pub mod random;
pub mod rig;
pub mod tiny_model;
