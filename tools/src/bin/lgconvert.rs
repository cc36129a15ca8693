//! `lgconvert`: from checkpoints to LongGen model files, and what is in one.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use longgen::Cancel;
use longgen::weights::{Load, open};
use longgen_format::Directory;
use longgen_tools::convert::types::MatrixType;
use longgen_tools::convert::{self, Conversion};
use longgen_tools::inspect::{self, size};
use longgen_tools::output::print;
use longgen_tools::plan::{self, AttentionArgs};
use longgen_tools::signals::cancel_on_signals;

/// Exit status of a run that was interrupted, as shells give it.
const INTERRUPTED: u8 = 130;

/// Turns a checkpoint into one file that says, per layer, what it attends to
#[derive(Parser)]
#[command(
    name = "lgconvert",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: Option<ConvertArgs>,
    // Not within the optional group: clap finds a group only by its own arguments.
    #[command(flatten)]
    attention: AttentionArgs,
}

#[derive(Args)]
struct ConvertArgs {
    /// A plain llama GGUF file, a Hugging Face folder, or a LongGen file to be changed
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to be written
    #[arg(short, long = "output", value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Element type of the matrices; vectors are always f32
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value = "keep")]
    matrices: MatrixType,
    /// Show plan and sizes, write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show metadata, tensors and attention plan of a file
    Inspect {
        /// A GGUF file
        file: PathBuf,
        /// Everything as JSON; its field "attention" is a plan for --attention
        #[arg(long, conflicts_with = "ctx")]
        json: bool,
        /// Show what the cache of a context of this many tokens takes
        #[arg(long, value_name = "TOKENS")]
        ctx: Option<u32>,
    },
    /// Compare all checksums of a file
    Verify {
        /// A LongGen file
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let cancel = Cancel::default();
    let result = match (cli.command, cli.convert) {
        (Some(Command::Inspect { file, json: true, .. }), _) => {
            inspect::json(&file).map(|json| print(&format!("{json:#}\n")))
        }
        (Some(Command::Inspect { file, ctx, .. }), _) => inspect::text(&file, ctx).map(|text| print(&text)),
        (Some(Command::Verify { file }), _) => verify(&file),
        (None, Some(args)) => convert(&args, &cli.attention, &cancel),
        // Without a subcommand the arguments of a conversion are required.
        (None, None) => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lgconvert: {error:#}");
            if cancel.is_cancelled() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

fn convert(args: &ConvertArgs, attention: &AttentionArgs, cancel: &Cancel) -> Result<()> {
    let begin = Instant::now();
    let conversion = Conversion::new(convert::open(&args.input)?, attention, args.matrices)?;
    for warning in &conversion.warnings {
        eprintln!("lgconvert: warning: {warning}");
    }
    let sizes = conversion.sizes()?;
    let n_bytes = sizes.iter().map(|(.., n_bytes)| n_bytes).sum();
    let Some(output) = args.output.as_ref().filter(|_| !args.dry_run) else {
        let mut text = format!("attention\n{}", plan::table(&conversion.attention, |_| String::new()));
        text.push_str(&format!("tensors, {}\n", size(n_bytes)));
        for (ty, count, n_bytes) in sizes {
            text.push_str(&format!("  {count} {ty}, {}\n", size(n_bytes)));
        }
        print(&text);
        return Ok(());
    };
    cancel_on_signals(cancel)?;
    let bar = progress_bar(n_bytes)?;
    let result = convert::save(&conversion, output, cancel, &mut |written| bar.set_position(written));
    bar.finish_and_clear();
    let (n_bytes, seconds) = (result?, begin.elapsed().as_secs_f64());
    print(&format!("{}: {} in {seconds:.1} s\n", output.display(), size(n_bytes)));
    Ok(())
}

fn verify(path: &Path) -> Result<()> {
    let bytes = open(path, Load::Map)?;
    let in_file = || path.display().to_string();
    let directory = Directory::read((*bytes).as_ref()).with_context(in_file)?;
    let sizes: Vec<_> = directory.tensors().iter().map(|tensor| tensor.n_bytes()).collect();
    let bar = progress_bar(sizes.iter().sum())?;
    let result = directory.verify(|i| bar.inc(sizes[i]));
    bar.finish_and_clear();
    result.with_context(in_file)?;
    print(&format!("{}: header and {} tensors are intact\n", path.display(), sizes.len()));
    Ok(())
}

/// A bar that counts bytes; invisible unless standard error is a terminal.
fn progress_bar(n_bytes: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    Ok(ProgressBar::new(n_bytes).with_style(style))
}
