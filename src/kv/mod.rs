//! The key/value cache: which block lies where, and the buffers of a session.

mod blocks;
pub mod cache;
pub mod file;
pub mod fork;
pub mod layer;
pub mod restore;
mod rewind;
pub mod slots;
