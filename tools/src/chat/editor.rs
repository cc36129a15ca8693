//! The user's own editor.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The user's editor, as a command of the shell: `$VISUAL`, or `$EDITOR`.
pub fn command() -> Option<OsString> {
    ["VISUAL", "EDITOR"].into_iter().filter_map(env::var_os).find(|command| !command.is_empty())
}

/// What the user makes of `text` in an editor. Line ends behind it are those that editors add.
///
/// # Errors
/// An editor that does not run or says that it failed, and text that is not UTF-8.
pub fn edit(command: &OsString, text: &str) -> Result<String> {
    let mut file = tempfile::Builder::new().prefix("lgrun-").suffix(".txt").tempfile()?;
    writeln!(file, "{text}")?;
    let name = command.to_string_lossy();
    let mut shell_command = command.clone();
    shell_command.push(" \"$@\"");
    let status = Command::new("sh").arg("-c").arg(shell_command).arg("sh").arg(file.path()).status();
    let status = status.with_context(|| format!("{name}: cannot be run"))?;
    ensure!(status.success(), "{name}: {status}");
    // By its name: editors put another file in its place.
    let text = fs::read_to_string(file.path()).with_context(|| format!("what {name} has written"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
