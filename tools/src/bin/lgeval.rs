//! `lgeval`: tokens, logits, perplexity and speed of a model.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use indicatif::DecimalBytes;
use longgen::{Cancel, Model, ModelParams};
use longgen_tools::attention_bench::BenchAttentionArgs;
use longgen_tools::chat_template::ChatTemplateArgs;
use longgen_tools::eval::{self, Speed};
use longgen_tools::mixed_bench::BenchMixedArgs;
use longgen_tools::output::print;
use longgen_tools::plan::AttentionArgs;
use longgen_tools::progress::Progress;
use longgen_tools::run_args::{RunArgs, name, tokenizer};
use longgen_tools::signals::cancel_on_signals;
use longgen_tools::stop_bench::BenchStopArgs;
use longgen_tools::synthetic::{Shape, Type};
use longgen_tools::turns_bench::BenchTurnsArgs;
use serde_json::{Value, json};

/// Measures a model: tokens, logits, perplexity, speed.
#[derive(Parser)]
#[command(name = "lgeval", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args)]
struct Common {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    attention: AttentionArgs,
}

impl Common {
    /// Opens the model with the plan that the flags ask for.
    fn open(&self) -> Result<Arc<Model>> {
        let attention = self.attention.plan((&self.run.config()?).into())?;
        self.run.open(ModelParams { attention, ..Default::default() })
    }
}

/// What is benched: a model in a file, or one of random weights.
#[derive(Args)]
struct Benched {
    #[command(flatten)]
    common: Common,
    /// Random weights of a well-known shape instead of a file
    #[arg(long, value_enum, value_name = "SHAPE", conflicts_with = "model")]
    synthetic: Option<Shape>,
    /// Type of the random matrices
    #[arg(long = "type", value_enum, value_name = "TYPE", default_value = "bf16", requires = "synthetic")]
    ty: Type,
}

impl Benched {
    fn open(&self) -> Result<Arc<Model>> {
        let Self { common, synthetic, ty } = self;
        let Some(shape) = *synthetic else { return common.open() };
        let attention = common.attention.plan(shape.into())?;
        let params = ModelParams { attention, ..Default::default() };
        common.run.open_with(params, |params, on_progress| shape.open(*ty, params, on_progress))
    }

    /// What was measured, besides what a test's name says.
    fn to_json(&self) -> Value {
        let Self { common, synthetic, ty } = self;
        json!({
            "model": match (synthetic, &common.run.model) {
                (Some(shape), _) => name(shape),
                (None, path) => path.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
            },
            "type": synthetic.map(|_| name(ty)),
            "attention": common.attention.attention,
            "kv": name(&common.run.compute.kv),
            "precision": name(&common.run.compute.precision),
        })
    }
}

#[derive(Subcommand)]
enum Command {
    /// Prints the token ids of each text on a line; reads no weights
    Tokenize {
        /// Model file
        #[arg(short, long, value_name = "FILE")]
        model: PathBuf,
        /// The texts
        #[arg(short, long = "file", value_name = "TEXT", required = true, num_args = 1..)]
        files: Vec<PathBuf>,
        /// Special tokens that are spelt in the text become those tokens
        #[arg(long)]
        special: bool,
    },
    /// Renders conversations with chat templates, a line of JSON for each: {"text": TEXT}, or {"error": WHY}
    ChatTemplate(ChatTemplateArgs),
    /// Writes the logits behind every token as a NumPy file: float32 [n_tokens, n_vocab]
    Logits {
        #[command(flatten)]
        common: Common,
        /// Token ids, with blanks between them
        #[arg(long, value_name = "IDS")]
        tokens: PathBuf,
        /// The NumPy file
        #[arg(short, long, value_name = "OUT")]
        out: PathBuf,
        /// Only those behind the last N tokens
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// How well the model predicts a text: the second half of every window of --ctx tokens (512 unless given) is scored
    Perplexity {
        #[command(flatten)]
        common: Common,
        /// The text
        #[arg(short, long, value_name = "TEXT")]
        file: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Tokens per second of prompt and generation, without tokenizer and sampler
    Bench {
        #[command(flatten)]
        of: Benched,
        /// Tokens of the prompt; 0 leaves it out
        #[arg(short = 'p', long, default_value_t = 512)]
        n_prompt: usize,
        /// Tokens to generate; 0 leaves it out
        #[arg(short = 'n', long, default_value_t = 64)]
        n_generate: usize,
        /// Tokens that are there before, not timed
        #[arg(short, long, default_value_t = 0)]
        depth: usize,
        /// Sessions that generate together, at the same depth: one number, or several with commas between them
        #[arg(short = 's', long, value_delimiter = ',', default_value = "1", value_parser = sessions)]
        sessions: Vec<usize>,
        /// Repetitions
        #[arg(short, long, default_value_t = 5)]
        repeat: usize,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Speed of attention alone: one layer, with random queries, keys and values; of a preset a sparse layer
    BenchAttention {
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        args: BenchAttentionArgs,
    },
    /// How long opening, a prompt and decoding go on after they were asked to stop
    BenchStop {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        args: BenchStopArgs,
    },
    /// What a prompt costs the sessions that decode when it arrives: in parts beside their tokens, and alone while they wait
    BenchMixed {
        #[command(flatten)]
        of: Benched,
        #[command(flatten)]
        args: BenchMixedArgs,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// How much of a conversation is computed again from turn to turn, and when an earlier message changes
    BenchTurns {
        #[command(flatten)]
        of: Benched,
        #[command(flatten)]
        args: BenchTurnsArgs,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
}

/// Reads `--sessions`.
fn sessions(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=256).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 256".into()),
    }
}

fn run(cli: Cli) -> Result<()> {
    let cancel = Cancel::default();
    cancel_on_signals(&cancel)?;
    let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    match cli.command {
        Command::Tokenize { model, files, special } => {
            let tokenizer = tokenizer(&model)?;
            for file in &files {
                let ids = tokenizer.encode(&read(file)?, special, true)?;
                let words: Vec<String> = ids.iter().map(u32::to_string).collect();
                print(&format!("{}\n", words.join(" ")));
            }
        }
        Command::ChatTemplate(args) => args.run(&mut |line| print(&format!("{line}\n")))?,
        Command::Logits { common, tokens, out, last } => {
            let model = common.open()?;
            let tokens = eval::read_tokens(&tokens)?;
            eval::logits(&common.run, &model, &tokens, last, &out, &cancel)?;
        }
        Command::Perplexity { common, file, json } => {
            let model = common.open()?;
            let text = read(&file)?;
            let n_ctx = common.run.ctx_size.unwrap_or(512);
            let bar = Progress::new("{wide_bar} {pos}/{len} windows, {eta} left");
            let progress = &mut |done, all| _ = bar.show(done, all);
            let result = eval::perplexity(&common.run, &model, &text, n_ctx, &cancel, progress)?;
            let eval::Perplexity { perplexity, n_tokens, seconds } = result;
            print(&match json {
                true => format!(
                    "{}\n",
                    json!({"perplexity": perplexity, "n_tokens": n_tokens, "seconds": seconds})
                ),
                false => format!("perplexity {perplexity:.4} over {n_tokens} tokens in {seconds:.1} s\n"),
            });
        }
        Command::Bench { of, n_prompt, n_generate, depth, sessions, repeat, json } => {
            let model = of.open()?;
            if !json {
                print(&format!("{}\n", model.device().name));
            }
            let bench = eval::Bench { n_prompt, n_generate, depth, repeat, sessions: &sessions };
            let what = merged(&of.to_json(), &json!({"depth": depth}));
            for speed in eval::bench(&of.common.run, &model, bench, &cancel)? {
                let (min, median, max) = speed.summary();
                let Speed { name, bytes_per_token, .. } = &speed;
                let gbs = *bytes_per_token as f64 * median / 1e9;
                let of_token = speed.ms_per_token().map(|ms| format!("  {ms:.2} ms a token  {gbs:.1} GB/s"));
                let of_token = of_token.unwrap_or_default();
                print(&match json {
                    true => format!("{}\n", merged(&what, &speed.to_json(&model.device().name))),
                    false => format!("{name:>16} {median:9.2} tokens/s  ({min:.2} to {max:.2}){of_token}\n"),
                });
            }
        }
        Command::BenchAttention { args, json } => {
            let bench = args.bench()?;
            let times = bench.run(&cancel)?;
            let (min, median, max) = eval::summary(&times.ms);
            print(&match json {
                true => format!("{}\n", bench.to_json(&times)),
                false => {
                    let bandwidth = bench.gbs(median).map(|gbs| format!("  {gbs:.1} GB/s"));
                    format!(
                        "{}\n{median:.4} ms  ({min:.4} to {max:.4})  {:.2} TFLOP/s{}\n",
                        times.device,
                        bench.tflops(median),
                        bandwidth.unwrap_or_default()
                    )
                }
            });
        }
        Command::BenchStop { json, args } => args.run(&cancel, &mut |device, times| {
            let (min, median, max) = eval::summary(&times.ms);
            print(&match json {
                true => format!("{}\n", times.to_json(device)),
                false => format!(
                    "{:>8} stops after {median:.2} ms  ({min:.2} to {max:.2}), by itself after {:.0}\n",
                    times.name, times.whole_ms
                ),
            });
        })?,
        Command::BenchMixed { of, args, json } => args.run(&of.open()?, &of.common.run, &cancel, &mut |device, mixed| {
            print(&match json {
                true => format!("{}\n", merged(&of.to_json(), &mixed.to_json(device))),
                false => format!(
                    "{:>16} {:9.2} tokens/s of the prompt {:9.2} tokens/s of the others, who wait {:.1} ms at most\n",
                    mixed.name(),
                    mixed.prompt_rate,
                    mixed.decode_rate,
                    mixed.longest_ms,
                ),
            });
        })?,
        Command::BenchTurns { of, args, json } => args.run(&of.open()?, &of.common.run, &cancel, &mut |device, turn| {
            print(&match json {
                true => format!("{}\n", merged(&of.to_json(), &turn.to_json(device))),
                false => format!(
                    "turn {:>2}{}: {:>6} tokens, {:>5} new, {:>5} computed in {:.0} ms; restore points {}\n",
                    turn.turn,
                    if turn.is_edit { ", edited" } else { "" },
                    turn.n_prompt,
                    turn.n_new,
                    turn.n_computed,
                    turn.time.as_secs_f64() * 1e3,
                    DecimalBytes(turn.restore_bytes as u64),
                ),
            });
        })?,
    }
    Ok(())
}

/// An object with the fields of both.
fn merged(first: &Value, second: &Value) -> Value {
    let fields = [first, second].into_iter().filter_map(Value::as_object).flatten();
    fields.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lgeval: {error:#}");
            ExitCode::FAILURE
        }
    }
}
