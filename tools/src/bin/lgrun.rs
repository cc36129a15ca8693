//! `lgrun`: chat with a model in a terminal, or get one answer.

use std::io::{IsTerminal, Read, Write, stderr, stdin};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::DecimalBytes;
use longgen::{Cancel, ErrorKind, ModelParams, Sampler, SamplerParams, Session, StopReason};
use longgen_tools::chat::Conversation;
use longgen_tools::chat_file::ChatFile;
use longgen_tools::costs;
use longgen_tools::generate::{self, Stats};
use longgen_tools::output::print;
use longgen_tools::plan_report;
use longgen_tools::progress::Progress;
use longgen_tools::run_args::RunArgs;
use longgen_tools::signals::cancel_on_interrupt;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

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
    /// it spares computing it again
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
    let session = match file.as_mut().and_then(|file| file.load(&model, &params)) {
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
    let (sampler, cancel) = (cli.sampler()?, Cancel::default());
    if cli.raw {
        cancel_on_interrupt(&cancel, || {})?;
        let text = question.context("--raw continues a text: give it with -p, -f or on standard input")?;
        return continue_text(cli, session, sampler, &text, &cancel);
    }
    let conversation = Conversation::new(session, sampler, cli.system.clone())?;
    let mut chat = Chat { conversation, file, is_left: Arc::default() };
    chat.resume()?;
    let chat = Arc::new(Mutex::new(chat));
    let is_left = lock(&chat).is_left.clone();
    let is_left_now = is_left.clone();
    let (kept, flag) = (cli.session.is_some().then(|| chat.clone()), cancel.clone());
    cancel_on_interrupt(&cancel, move || {
        if let Some(chat) = &kept {
            is_left_now.store(true, Ordering::SeqCst);
            leave_now(chat, &flag);
        }
    })?;
    let result = match question {
        Some(question) => answer_once(cli, &mut lock(&chat), &question, &cancel),
        None => talk(cli, &chat, &cancel),
    };
    while is_left.load(Ordering::SeqCst) {
        // The signal's thread keeps everything and ends the process.
        std::thread::park();
    }
    cancel.reset();
    result.and(lock(&chat).leave(&cancel))
}

/// A conversation, and where it is kept.
struct Chat {
    conversation: Conversation,
    file: Option<ChatFile>,
    /// Whether the process is being ended from outside: no further message is read then.
    is_left: Arc<AtomicBool>,
}

impl Chat {
    /// Goes on with the messages of the file.
    fn resume(&mut self) -> Result<()> {
        match &self.file {
            Some(file) if !file.messages().is_empty() => self.conversation.resume(file.messages()),
            _ => Ok(()),
        }
    }

    /// Answers, and shows that.
    fn say(&mut self, cli: &Cli, text: &str, cancel: &Cancel) -> Result<Stats> {
        let bar = prompt_progress();
        let on_progress = &mut |done, all| bar.show(done, all);
        let answer = self.conversation.say(text, cli.limit(), cancel, on_progress, &mut print);
        // Before anything else stands on its line.
        drop(bar);
        answer.inspect(|_| print("\n"))
    }

    /// Writes what was said to the file.
    fn keep(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.keep(&self.conversation))
    }

    /// Keeps everything.
    fn leave(&mut self, cancel: &Cancel) -> Result<()> {
        self.keep()?;
        if let Some(file) = &mut self.file {
            let kept = format!("{} is complete, but not", file.path().display());
            file.save(&mut self.conversation, cancel).context(kept)?;
        }
        Ok(())
    }
}

/// The chat; after a panic as it is.
fn lock(chat: &Mutex<Chat>) -> MutexGuard<'_, Chat> {
    chat.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps everything before the process is ended from outside, if the answer that is running can be stopped: where the
/// terminal takes no more of it, it cannot.
fn leave_now(chat: &Mutex<Chat>, cancel: &Cancel) {
    let begun = Instant::now();
    let mut chat = loop {
        // Again and again: an answer that begins takes back what was asked before.
        cancel.cancel();
        match chat.try_lock() {
            Ok(chat) => break chat,
            Err(TryLockError::Poisoned(chat)) => break chat.into_inner(),
            Err(TryLockError::WouldBlock) if begun.elapsed() > PATIENCE => return,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if let Err(error) = chat.leave(&Cancel::default()) {
        // There may be no terminal any more.
        let _ = writeln!(stderr(), "lgrun: {error:#}");
    }
}

fn continue_text(
    cli: &Cli,
    mut session: Session,
    mut sampler: Sampler,
    text: &str,
    cancel: &Cancel,
) -> Result<()> {
    let prompt = session.model().tokenizer().encode(text, false, true)?;
    let bar = prompt_progress();
    let on_progress = &mut |done, all| bar.show(done, all);
    let answer =
        generate::answer(&mut session, &prompt, &mut sampler, cli.limit(), cancel, on_progress, &mut print);
    // Before anything else stands on its line.
    drop(bar);
    let stats = answer?;
    print("\n");
    end(cli, &session, &stats)
}

fn answer_once(cli: &Cli, chat: &mut Chat, question: &str, cancel: &Cancel) -> Result<()> {
    let stats = chat.say(cli, question, cancel)?;
    chat.keep()?;
    end(cli, chat.conversation.session(), &stats)
}

/// Says what the only answer cost, and what ended it too early.
fn end(cli: &Cli, session: &Session, stats: &Stats) -> Result<()> {
    if cli.stats && stats.has_begun() {
        print_costs(cli, session, stats);
    }
    match stats.stop {
        None | Some(StopReason::Cancelled) => bail!("stopped"),
        Some(StopReason::ContextFull) => eprintln!("(the context is full: -c takes a larger one)"),
        Some(_) => {}
    }
    Ok(())
}

/// Characters of a message that are shown of a conversation that goes on.
const SHOWN_CHARS: usize = 60;

/// How long a request to terminate waits for an answer to stop.
const PATIENCE: Duration = Duration::from_secs(10);

const HELP: &str = "\
/clear   forget the conversation
/stats   what the context holds, and what the last answer cost
/save    save what was computed, too, as leaving does; for --session
/help    this list
/bye     leave, like Ctrl-D
Ctrl-C stops an answer, and the conversation keeps what has come of it. Before
an answer begins it takes your message back. At the prompt, twice, it leaves.
Arrow up brings back what you typed. A backslash at a line's end continues it.";

fn talk(cli: &Cli, chat: &Mutex<Chat>, cancel: &Cancel) -> Result<()> {
    greet(&lock(chat));
    let mut editor = DefaultEditor::new().context("cannot read lines from this terminal")?;
    let mut interrupted = false;
    loop {
        let text = match read_message(&mut editor) {
            Ok(text) => text,
            Err(ReadlineError::Interrupted) if interrupted => return Ok(()),
            Err(ReadlineError::Interrupted) => {
                eprintln!("(Ctrl-C again or Ctrl-D leaves)");
                interrupted = true;
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("cannot read a line"),
        };
        interrupted = false;
        let _ = editor.add_history_entry(&text);
        let chat = &mut *lock(chat);
        cancel.reset();
        match text.trim() {
            "" => continue,
            "/bye" => return Ok(()),
            "/clear" => chat.conversation.clear(),
            "/save" => save(chat, cancel),
            "/stats" => print_stats(cli, &chat.conversation)?,
            "/help" => eprintln!("{HELP}"),
            command if command.starts_with('/') => eprintln!("{command}: no such command; /help lists them"),
            text => match chat.say(cli, text, cancel) {
                Ok(stats) => finish(cli, chat.conversation.session(), &stats),
                Err(error) => refuse(&chat.conversation, &error),
            },
        }
        if let Err(error) = chat.keep() {
            eprintln!("({error:#})");
        }
        if chat.is_left.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

/// Says who answers, and what the conversation goes on with.
fn greet(chat: &Chat) {
    let session = chat.conversation.session();
    let name = session.model().config().name.as_deref().unwrap_or("the model");
    eprintln!("{name}, {} tokens of context. /help lists commands.", session.n_ctx());
    let Some(file) = chat.file.as_ref().filter(|file| !file.messages().is_empty()) else { return };
    let (messages, n_tokens) = (file.messages(), chat.conversation.n_tokens());
    eprintln!(
        "{} goes on: {}, {n_tokens} tokens, {} of them computed",
        file.path().display(),
        match messages.len() {
            1 => "1 message".to_owned(),
            n => format!("{n} messages"),
        },
        session.tokens().len()
    );
    for message in &messages[messages.len().saturating_sub(2)..] {
        let line = message.content.trim().lines().next().unwrap_or_default();
        let begin: String = line.chars().take(SHOWN_CHARS).collect();
        let more = if begin.len() < message.content.trim().len() { " ..." } else { "" };
        eprintln!("  {}: {begin}{more}", message.role);
    }
}

/// What /save does.
fn save(chat: &mut Chat, cancel: &Cancel) {
    let Some(file) = &mut chat.file else {
        return eprintln!("/save: no file; --session FILE names one when lgrun starts");
    };
    match file.save(&mut chat.conversation, cancel) {
        Ok(n_bytes) => eprintln!("(saved, {} computed)", DecimalBytes(n_bytes)),
        Err(error) => eprintln!("{error:#}"),
    }
}

/// A line, or several that end in a backslash.
fn read_message(editor: &mut DefaultEditor) -> Result<String, ReadlineError> {
    let mut text = editor.readline("> ")?;
    while text.ends_with('\\') {
        text.pop();
        text.push('\n');
        text += &editor.readline(". ")?;
    }
    Ok(text)
}

fn prompt_progress() -> Progress {
    Progress::new("reading {pos} of {len} tokens, {per_sec:1}, {eta} left")
}

/// Says why an answer of a conversation ended early, and with --stats what it cost.
fn finish(cli: &Cli, session: &Session, stats: &Stats) {
    match stats.stop {
        Some(StopReason::ContextFull) => {
            let n_ctx = session.n_ctx();
            eprintln!("(the context of {n_ctx} tokens is full: /clear empties it, -c takes a larger one)");
        }
        None => {
            eprintln!(
                "(stopped before the answer: your message is not in the conversation, arrow up brings it back)"
            );
        }
        Some(StopReason::Cancelled) => {
            eprintln!("(stopped: the conversation keeps the answer as far as it came)")
        }
        Some(_) => {}
    }
    if cli.stats && stats.has_begun() {
        print_costs(cli, session, stats);
    }
}

/// Says why a message has no answer, and what can be done.
fn refuse(conversation: &Conversation, error: &anyhow::Error) {
    let kind = error.downcast_ref::<longgen::Error>().map(longgen::Error::kind);
    match kind {
        Some(ErrorKind::ContextFull) => eprintln!(
            "({error:#}; the conversation so far has {}: /clear forgets it, arrow up brings your message back)",
            conversation.n_tokens()
        ),
        _ => eprintln!("{error:#}"),
    }
}

/// What /stats prints.
fn print_stats(cli: &Cli, conversation: &Conversation) -> Result<()> {
    let session = conversation.session();
    let (n_tokens, n_ctx) = (conversation.n_tokens(), session.n_ctx());
    let kv_bytes = DecimalBytes(session.kv_bytes() as u64);
    eprintln!("context {n_tokens} of {n_ctx} tokens, {kv_bytes} of keys and values");
    let mut points = session.restore_points()?;
    points.retain(|&point| point <= n_tokens);
    if !points.is_empty() {
        let list: Vec<String> = points.iter().map(ToString::to_string).collect();
        let bytes = DecimalBytes(session.restore_bytes() as u64);
        eprintln!("restore points behind {} tokens, {bytes}", list.join(", "));
    }
    if let Some(stats) = conversation.last() {
        print_costs(cli, session, stats);
    }
    Ok(())
}

fn print_costs(cli: &Cli, session: &Session, stats: &Stats) {
    eprintln!("{}", costs::line(session.model(), stats, cli.run.compute.kv_type()));
    if let Some(note) = session.decode_note() {
        eprintln!("{note}");
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lgrun: {error:#}");
            ExitCode::FAILURE
        }
    }
}
