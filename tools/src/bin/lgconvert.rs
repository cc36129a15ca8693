//! `lgconvert`: from checkpoints to LongGen model files, and what is in one.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use longgen::Cancel;
use longgen::attention::plan::MAX_CTX;
use longgen::weights::{Load, open};
use longgen_format::Directory;
use longgen_tools::convert::types::MatrixType;
use longgen_tools::convert::{self, Conversion};
use longgen_tools::inspect::{Cache, Contents, size};
use longgen_tools::output::print;
use longgen_tools::plan::{self, AttentionArgs};
use longgen_tools::run_args::KvArg;
use longgen_tools::signals::cancel_on_signals;
use serde_json::{Value, json};

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
    /// Show them as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show metadata, tensors and attention plan of a model
    Inspect {
        /// A GGUF file or a Hugging Face folder
        input: PathBuf,
        /// Everything as JSON; its field "attention" is a plan for --attention
        #[arg(long)]
        json: bool,
        /// Show what the cache of a context of this many tokens takes
        #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CTX)))]
        ctx: Option<u32>,
        /// Element type of that cache
        #[arg(long, value_enum, default_value = "f16", requires = "ctx")]
        kv: KvArg,
    },
    /// Compare all checksums of a file
    Verify {
        /// A LongGen file
        file: PathBuf,
        /// Say as JSON what became of it
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let cancel = Cancel::default();
    let result = match (cli.command, cli.convert) {
        (Some(Command::Inspect { input, json, ctx, kv }), _) => {
            let cache = ctx.map(|n_ctx| Cache { n_ctx, kv });
            Contents::open(&input).map(|contents| match json {
                true => print_json(&contents.json(cache)),
                false => print(&contents.text(cache)),
            })
        }
        (Some(Command::Verify { file, json }), _) => verify(&file, json),
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
    let Some(output) = args.output.as_ref().filter(|_| !args.dry_run) else {
        match args.json {
            true => print_json(&described(&conversion)?),
            false => print(&description(&conversion)?),
        }
        return Ok(());
    };
    cancel_on_signals(cancel)?;
    let bar = progress_bar(conversion.n_bytes()?)?;
    let result = convert::save(&conversion, output, cancel, &mut |written| bar.set_position(written));
    bar.finish_and_clear();
    let (n_bytes, seconds) = (result?, begin.elapsed().as_secs_f64());
    print(&format!("{}: {} in {seconds:.1} s\n", output.display(), size(n_bytes)));
    Ok(())
}

/// What a conversion would write, for people.
fn description(conversion: &Conversion) -> Result<String> {
    let mut text = format!("attention\n{}", plan::table(&conversion.attention, |_| String::new()));
    text.push_str(&format!("tensors, {}\n", size(conversion.n_bytes()?)));
    for (ty, count, n_bytes) in conversion.sizes()? {
        text.push_str(&format!("  {count} {ty}, {}\n", size(n_bytes)));
    }
    Ok(text)
}

/// The same for programs.
fn described(conversion: &Conversion) -> Result<Value> {
    let sizes = conversion.sizes()?;
    let of_type = sizes
        .iter()
        .map(|(ty, count, n_bytes)| json!({"type": ty.name(), "tensors": count, "bytes": n_bytes}));
    Ok(json!({
        "attention": plan::to_json(&conversion.attention),
        "types": of_type.collect::<Vec<_>>(),
        "bytes": conversion.n_bytes()?,
        "warnings": conversion.warnings,
    }))
}

fn verify(path: &Path, json: bool) -> Result<()> {
    let bytes = open(path, Load::Map)?;
    let in_file = || path.display().to_string();
    let directory = Directory::read((*bytes).as_ref()).with_context(in_file)?;
    let sizes: Vec<_> = directory.tensors().iter().map(|tensor| tensor.n_bytes()).collect();
    let bar = progress_bar(sizes.iter().sum())?;
    let result = directory.verify(|i| bar.inc(sizes[i]));
    bar.finish_and_clear();
    if json {
        let error = result.as_ref().err().map(ToString::to_string);
        print_json(&json!({"intact": result.is_ok(), "tensors": sizes.len(), "error": error}));
    }
    result.with_context(in_file)?;
    if !json {
        print(&format!("{}: header and {} tensors are intact\n", path.display(), sizes.len()));
    }
    Ok(())
}

fn print_json(json: &Value) {
    print(&format!("{json:#}\n"));
}

/// A bar that counts bytes; invisible unless standard error is a terminal.
fn progress_bar(n_bytes: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    Ok(ProgressBar::new(n_bytes).with_style(style))
}
