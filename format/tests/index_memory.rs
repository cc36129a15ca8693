//! An index takes a small part of the memory that the vocabulary takes which it finds. Alone in its program, since it counts
//! what that allocates.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use longgen_format::{Directory, OwnedValue, Writer};

struct Counting;

static N_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        N_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_index_takes_little_memory() {
    let n = 50_000;
    let tokens = (0..n).map(|i| format!("token {i}")).collect();
    let pairs = vec![
        ("tokens".to_owned(), OwnedValue::Strs(tokens)),
        ("scores".to_owned(), OwnedValue::F32s(vec![0.5; n])),
        ("template".to_owned(), OwnedValue::Str("x".repeat(100_000))),
    ];
    let bytes =
        Writer::new(Cursor::new(Vec::new()), pairs, Vec::new()).unwrap().finish().unwrap().into_inner();
    let directory = Directory::read(&bytes).unwrap();
    let before = N_BYTES.load(Ordering::Relaxed);
    let index = directory.metadata_index().unwrap();
    let taken = N_BYTES.load(Ordering::Relaxed) - before;
    assert!(taken > 0 && taken < bytes.len() / 50, "{taken} bytes for a file of {}", bytes.len());
    assert_eq!(index.str(&bytes, "tokens", n - 1).unwrap(), format!("token {}", n - 1));
}
