//! Python for tests that compare with a package of its own.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that has the package: the project's environment, which CI makes if it is not there, or the system's. `None`,
/// said loudly, if there is none, which CI does not allow.
pub fn with(package: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let is_ci = env::var_os("CI").is_some();
    if is_ci {
        let made = Command::new("bash").arg(root.join("tools/venv.sh")).status().unwrap();
        assert!(made.success(), "tools/venv.sh: {made}");
    }
    let has_it = |python: &PathBuf| {
        let output = Command::new(python).args(["-c", &format!("import {package}")]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let python = [root.join(".venv/bin/python"), PathBuf::from("python3")].into_iter().find(has_it);
    if python.is_none() {
        assert!(!is_ci, "no Python with the package {package}");
        let message = format!("SKIPPED: no Python with the package {package}; run tools/venv.sh\n");
        // Past the test harness, which would swallow it.
        std::io::stderr().write_all(message.as_bytes()).unwrap();
    }
    python
}
