//! `include/longgen.h` is what its sources say; `LG_BLESS=1` rewrites it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

/// In the order in which the header presents them.
const SOURCES: [&str; 19] = [
    "version",
    "status",
    "model",
    "info",
    "attention",
    "metadata",
    "plan",
    "tokenize",
    "stream",
    "chat",
    "session",
    "prompt",
    "file",
    "fork",
    "logits",
    "state",
    "sampler",
    "generate",
    "cancel",
];

/// The version of the package, for the preprocessor.
fn version_macros() -> String {
    let parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    let [major, minor, patch] = parts[..] else { panic!("a version of {} parts", parts.len()) };
    format!(
        "\n// Version of this header. LG_VERSION is one number, as lg_version returns it: {number} for {major}.{minor}.{patch}.\n\
         #define LG_VERSION_MAJOR {major}\n\
         #define LG_VERSION_MINOR {minor}\n\
         #define LG_VERSION_PATCH {patch}\n\
         #define LG_VERSION {number}\n\
         #define LG_VERSION_STR \"{major}.{minor}.{patch}\"\n",
        number = major * 1_000_000 + minor * 1_000 + patch,
    )
}

fn generate(root: &Path) -> String {
    let mut config = cbindgen::Config::from_file(root.join("include/cbindgen.toml")).unwrap();
    config.after_includes = Some(version_macros());
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join(format!("src/capi/{source}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/longgen.h");
    let generated = generate(root);
    if std::env::var_os("LG_BLESS").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    let differs = generated.lines().zip(current.lines()).position(|(a, b)| a != b);
    assert!(
        generated == current,
        "include/longgen.h is not what src/capi says, from line {:?} on; LG_BLESS=1 cargo test --test header rewrites it",
        differs.map(|i| i + 1)
    );
}

#[test]
fn every_source_of_the_interface_is_in_the_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join("src/capi")).unwrap() {
        let path = entry.unwrap().path();
        let exports = fs::read_to_string(&path).unwrap().contains("#[unsafe(no_mangle)]");
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(exports, SOURCES.contains(&name), "{}", path.display());
    }
}
