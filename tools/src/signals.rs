//! What signals ask the programs for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use longgen::Cancel;
use rustix::io::write;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];
/// Makes a terminal show pasted lines as ones that were typed, again.
const PLAIN_PASTE: &[u8] = b"\x1b[?2004l\n";

/// From now on Ctrl-C and a request to terminate set the flag.
///
/// # Errors
/// The system gives no handler.
pub fn cancel_on_signals(cancel: &Cancel) -> Result<()> {
    let flag = cancel.clone();
    on_signals(move |_| flag.cancel())
}

/// From now on Ctrl-C sets the flag. A request to terminate calls `leave` and ends the process, whatever it is doing, as it
/// does without a handler; if that is editing a line, the terminal gets back the modes that it has now. Any further signal
/// ends it at once.
///
/// # Errors
/// The system gives no handler.
pub fn cancel_on_interrupt(cancel: &Cancel, leave: impl Fn() + Send + 'static) -> Result<()> {
    let flag = cancel.clone();
    let found = tcgetattr(stdin()).ok();
    let is_leaving = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS {
        register_conditional_default(signal, is_leaving.clone()).context("cannot listen for signals")?;
    }
    on_signals(move |signal| {
        if signal == SIGINT {
            return flag.cancel();
        }
        let end_editing = || found.iter().for_each(end_editing);
        is_leaving.store(true, Ordering::Relaxed);
        // Before, since a further signal leaves no time for it, and behind, since a line may be edited by then.
        end_editing();
        leave();
        end_editing();
        // It fails for no signal that ends a process.
        let _ = emulate_default_handler(signal);
    })
}

/// Calls `act` for each of these signals, in a thread of its own.
fn on_signals(act: impl Fn(i32) + Send + 'static) -> Result<()> {
    let mut signals = Signals::new(SIGNALS).context("cannot listen for signals")?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(act))
        .context("cannot listen for signals")?;
    Ok(())
}

/// Gives the terminal back its modes if a line is being edited. Past the lock of standard output, which another thread may
/// hold for as long as the terminal takes no more; while a line is edited, it takes all.
fn end_editing(found: &Termios) {
    let is_edited = |now: Termios| now.local_modes != found.local_modes;
    if tcgetattr(stdin()).is_ok_and(is_edited) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, found);
        let _ = write(stdout(), PLAIN_PASTE);
    }
}
