//! `lgrun`: chat with a model in a terminal, or get one answer.

use std::io::{IsTerminal, Read, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::DecimalBytes;
use longgen::{Cancel, ModelParams, Sampler, SamplerParams, Session};
use longgen_tools::chat::conversation::Conversation;
use longgen_tools::chat::file::ChatFile;
use longgen_tools::chat::{Chat, Shared, talk};
use longgen_tools::costs::tell_costs;
use longgen_tools::generate;
use longgen_tools::output::{Unread, print, tell};
use longgen_tools::plan_report;
use longgen_tools::progress::Progress;
use longgen_tools::run_args::RunArgs;
use longgen_tools::signals::cancel_on_interrupt;

/// Chats with a model, or answers once: with -p, -f, or text on standard input.
#[derive(Parser)]
#[command(name = "lgrun", version)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
    /// The question, for one answer
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the question, or with what the question of -p is about
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Continue the text as it is, without chat template
    #[arg(long)]
    raw: bool,
    /// Keep the conversation in FILE and go on with it the next time: JSON lines that can be read and edited. FILE.kv beside
    /// it spares computing it again. Commands of the chat go on with copies and with other files, see /help there
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    session: Option<PathBuf>,
    /// What the model is told before the conversation; one that --session goes on with keeps what it began with
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    system: Option<String>,
    /// Most tokens of an answer [default: until the model ends it or the context is full]
    #[arg(short, long, value_name = "TOKENS")]
    n_predict: Option<usize>,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temp: f32,
    /// Choose among the K likeliest tokens; 0 means all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: u32,
    /// Choose among the likeliest tokens that have probability P together
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Choose among the tokens that have at least P times the probability of the likeliest; 0 means all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// How many of the last tokens are recent, those of the prompt among them; 0 means none
    #[arg(long, value_name = "N", default_value_t = 64)]
    repeat_last_n: u32,
    /// Start of the random numbers [default: another one every time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print what each layer attends to and the exact memory of the context, and exit
    #[arg(long)]
    plan: bool,
    /// Print what each answer cost
    #[arg(long)]
    stats: bool,
}

impl Cli {
    /// The text to answer once, if there is one.
    fn question(&self) -> Result<Option<String>> {
        let mut text = String::new();
        if let Some(file) = &self.file {
            text += &std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        }
        if let Some(prompt) = &self.prompt {
            if !text.is_empty() && !self.raw {
                text += "\n\n";
            }
            text += prompt;
        }
        if self.file.is_none() && self.prompt.is_none() {
            if stdin().is_terminal() {
                return Ok(None);
            }
            stdin().read_to_string(&mut text).context("standard input")?;
        }
        if text.trim().is_empty() {
            bail!("nothing to answer: the text is empty");
        }
        Ok(Some(text))
    }

    fn sampler(&self) -> Result<Sampler> {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seed = self.seed.unwrap_or_else(|| u64::from(now().subsec_nanos()) ^ now().as_secs() << 30);
        let &Self { temp: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, .. } = self;
        if self.stats {
            eprintln!(
                "temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, \
                repeat penalty {repeat_penalty} over {repeat_last_n} tokens, seed {seed}"
            );
        }
        let params = SamplerParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            seed,
            ..Default::default()
        };
        Ok(Sampler::new(&params)?)
    }

    fn limit(&self) -> usize {
        self.n_predict.unwrap_or(usize::MAX)
    }
}

fn run(cli: &Cli) -> Result<()> {
    let question = if cli.plan { None } else { cli.question()? };
    let mut file = cli.session.as_deref().map(ChatFile::open).transpose()?;
    if let (Some(file), Some(text)) = (&file, &cli.system) {
        file.check_system(text)?;
    }
    let model = cli.run.open(ModelParams::default())?;
    let params = cli.run.session_params(0);
    if cli.plan {
        print(&plan_report::report(&model, &params)?);
        return Ok(());
    }
    let session = match file.as_mut().and_then(|file| file.load(&model, &params, &Cancel::default())) {
        Some(session) => session,
        None => cli.run.session(&model, &params)?,
    };
    if cli.stats {
        let (device, plan) = (model.device().name, model.plan(&params)?);
        let working = plan.total_bytes() - plan.kv_bytes();
        let [weights, kv, working] =
            [model.tensor_bytes(), plan.kv_bytes(), working].map(|n| DecimalBytes(n as u64));
        eprintln!("{device}: {weights} of weights, {kv} of keys and values, {working} to work with");
    }
    let sampler = cli.sampler()?;
    if cli.raw {
        let text = question.context("--raw continues a text: give it with -p, -f or on standard input")?;
        return continue_text(cli, session, sampler, &text);
    }
    let conversation = Conversation::new(session, sampler, cli.system.clone())?;
    let mut chat = Chat { conversation, file, params, limit: cli.limit(), shows_costs: cli.stats };
    chat.resume()?;
    let chat = Shared::new(chat)?;
    let result = match question {
        Some(question) => chat.lock().answer_once(&question, &chat.cancel),
        None => talk(&chat),
    };
    // That something is not kept matters more than what ended the chat.
    match (result, chat.leave()) {
        (result, Ok(())) => result,
        (Ok(()), left) => left,
        (Err(error), left) => {
            tell(format!("lgrun: {error:#}"));
            left
        }
    }
}

fn continue_text(cli: &Cli, mut session: Session, mut sampler: Sampler, text: &str) -> Result<()> {
    let cancel = Cancel::default();
    cancel_on_interrupt(&cancel, || {})?;
    let prompt = session.model().tokenizer().encode(text, false, true)?;
    let bar = Progress::prompt();
    let on_progress = &mut |done, all| bar.show(done, all);
    let print_part = &mut |text: &str| {
        print(text);
        true
    };
    let limit = cli.limit();
    let answer =
        generate::answer(&mut session, &prompt, &mut sampler, limit, &cancel, on_progress, print_part);
    // Before anything else stands on its line.
    drop(bar);
    let stats = answer?;
    print("\n");
    if cli.stats && stats.has_begun() {
        tell_costs(&session, &stats, cli.run.compute.kv_type());
    }
    stats.check_end()
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref().is_some_and(Unread::is_end) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format!("lgrun: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
