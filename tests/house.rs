//! The architecture as a test: who imports whom, and where `unsafe` may stand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Where `unsafe` may stand, and why is written at the top of each file.
const UNSAFE: [&str; 6] =
    ["alloc.rs", "backend/cpu/simd/", "backend/cpu/team.rs", "backend/cuda/", "capi/", "weights.rs"];

/// What the files under a path may not name.
const FORBIDDEN: [(&str, &[&str]); 9] = [
    ("", &["crate::capi"]),
    (
        "backend/",
        &["crate::model", "crate::session", "crate::weights", "crate::kv::cache", "crate::attention::plan"],
    ),
    ("backend/cpu/", &["backend::reference", "super::reference", "backend::cuda"]),
    ("backend/cuda/", &["backend::reference", "super::reference", "backend::cpu"]),
    ("attention/", &["crate::model", "crate::session", "crate::kv", "crate::backend"]),
    ("kv/", &["crate::model", "crate::session", "crate::weights"]),
    ("kv/slots.rs", &["crate::backend", "crate::error", "crate::alloc"]),
    ("model/", &["crate::capi"]),
    ("text/", &["crate::model", "crate::session", "crate::backend", "crate::kv", "crate::attention"]),
];

/// Crates that only some files may name.
const CRATES: [(&str, &[&str]); 2] = [("memmap2::", &["weights.rs"]), ("cudarc::", &["backend/cuda/"])];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(sources(&path)),
            false => files.push(path),
        }
    }
    files
}

/// Every source file under `src/`: its path there, and its lines without comments.
fn code() -> Vec<(String, Vec<String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lines = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split("//").next().unwrap().to_owned()).collect()
    };
    let name = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    sources(&root).iter().map(|path| (name(path), lines(path))).collect()
}

#[test]
fn nobody_imports_upwards() {
    for (file, lines) in code() {
        for (path, forbidden) in FORBIDDEN.iter().filter(|(path, _)| file.starts_with(path)) {
            for name in *forbidden {
                let uses = lines.iter().find(|line| line.contains(name));
                assert!(uses.is_none(), "src/{file}: files under {path:?} may not name {name}: {uses:?}");
            }
        }
    }
}

#[test]
fn crates_stay_where_they_belong() {
    for (file, lines) in code() {
        for (name, places) in CRATES {
            let allowed = places.iter().any(|place| file.starts_with(place));
            assert!(
                allowed || !lines.iter().any(|line| line.contains(name)),
                "src/{file} may not name {name}"
            );
        }
    }
}

#[test]
fn unsafe_stays_where_it_is_explained() {
    for (file, lines) in code() {
        let has_unsafe = lines
            .iter()
            .any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe"));
        let allowed = UNSAFE.iter().any(|place| file.starts_with(place));
        assert!(allowed || !has_unsafe, "src/{file} may not use unsafe");
    }
}
