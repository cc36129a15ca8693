//! C and C++ programs on the shared library: compiled without a warning, run, and run again under valgrind and with
//! sanitizers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;

use longgen::attention::mask::Mask;
use longgen::{
    Cancel, GenerateParams, KvType, Model, ModelParams, Precision, Sampler, SamplerParams, Session,
    SessionParams,
};
use longgen_format::{Directory, OwnedValue, TensorType};
use serde_json::Value;
use support::random::Random;
use support::workshop::{C99, CPP, Workshop, has};
use support::{metadata, tiny_model};

#[test]
fn structs_and_versions_are_the_same_on_both_sides() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/layout.c", &[]);
    workshop.run(&program, &[]);
    // Under valgrind the processor has other instructions.
    let output = Command::new(&program).arg("build").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), longgen::build_info());
}

#[test]
fn hostile_arguments_are_refused_and_change_nothing() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/hostile.c", &[workshop.model(), workshop.folder.path().to_str().unwrap()]);
}

#[test]
fn errors_say_what_is_wrong_with_which_argument() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/says.c", &[workshop.model(), workshop.folder.path().to_str().unwrap()]);
}

/// What the programs of tests/abi must print.
fn answer(model: &str) -> String {
    let params = SessionParams { kv_type: KvType::F32, precision: Precision::Exact, ..Default::default() };
    let model = Arc::new(Model::open(model, &ModelParams::default()).unwrap());
    let mut session = Session::new(&model, &params).unwrap();
    let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
    let params = GenerateParams { max_tokens: 20, ignore_end: true, ..Default::default() };
    let mut text = String::new();
    let on_text = &mut |_, more: &str| {
        text += more;
        true
    };
    session
        .generate(&mut sampler, &[1, 2, 3, 4], &params, &Cancel::default(), &mut |_, _| true, on_text)
        .unwrap();
    text
}

/// Each was compiled when its version came out, with the header that lies beside it.
#[test]
fn programs_of_earlier_versions_run() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/abi/v0.1/client.c", &[]);
    let printed = workshop.run(&program, &[workshop.model()]);
    assert_eq!(String::from_utf8(printed).unwrap(), answer(workshop.model()));
}

#[test]
fn sessions_keep_their_promises() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/session.c", &[workshop.model()]);
}

/// What info.c prints of a tiny model whose file names special tokens like this.
fn facts(special: &[u32]) -> String {
    let [d_model, d_ff] = tiny_model::WIDTHS;
    let (n_vocab, n_layers) = (tiny_model::N_VOCAB, tiny_model::plan().len());
    let [q_dim, kv_dim] = [tiny_model::N_HEADS, tiny_model::N_KV_HEADS].map(|n| n * tiny_model::HEAD_DIM);
    // In blocks of 32 elements, 34 bytes each; norms and biases are f32.
    let matrices = d_model * n_vocab + n_layers * d_model * (2 * q_dim + 2 * kv_dim + 3 * d_ff);
    let vectors = d_model + n_layers * (2 * d_model + q_dim);

    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!("longgen\nCPU, {n_threads} threads\n");
    let (n_heads, n_kv_heads, head_dim) = (tiny_model::N_HEADS, tiny_model::N_KV_HEADS, tiny_model::HEAD_DIM);
    writeln!(
        text,
        "{n_layers} layers, {n_heads} heads, {n_kv_heads} kv heads of {head_dim}, width {d_model}\n\
         1024 tokens of context, {n_vocab} of vocabulary\n\
         {} parameters in {} bytes",
        matrices + vectors,
        matrices / 32 * 34 + vectors * 4
    )
    .unwrap();
    special.iter().for_each(|token| write!(text, "{token} ").unwrap());
    writeln!(text, "\nspecial: {} {}", tiny_model::BOS, tiny_model::EOS).unwrap();
    for layer in tiny_model::plan() {
        let kind = match layer.mask {
            Mask::Full => "full".to_owned(),
            Mask::Window { window_tokens, sink_tokens } => format!("window {window_tokens} {sink_tokens}"),
            Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => {
                format!("blocks {block_size} {local_blocks} {sink_blocks} {stride}")
            }
        };
        let phases: String = layer.phases.iter().map(|phase| format!(" {phase}")).collect();
        writeln!(text, "{kind}{phases}").unwrap();
    }
    text
}

#[test]
fn a_model_is_what_its_file_says() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/info.c", &[]);
    let none = u32::MAX;
    let mut special = [none; 15];
    special[..2].copy_from_slice(&[tiny_model::BOS, tiny_model::EOS]);
    let printed = workshop.run(&program, &[workshop.model()]);
    assert_eq!(String::from_utf8(printed).unwrap(), facts(&special));

    // Every key that GGUF has for special tokens, in the order of LG_SPECIAL_*, and one that names no token.
    let names = "eot eom unknown seperator padding cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep";
    let mut random = Random::new(18);
    let more: Vec<_> = (2..)
        .zip(names.split(' '))
        .map(|(i, name)| {
            let token = u32::try_from(random.below(tiny_model::N_VOCAB)).unwrap();
            special[i] = token;
            (format!("tokenizer.ggml.{name}_token_id"), OwnedValue::U32(token))
        })
        .collect();
    let write = |more: &[(String, OwnedValue)]| {
        std::fs::write(&workshop.model, tiny_model::bytes_with_metadata(TensorType::Q8_0, more)).unwrap();
    };
    write(&more);
    let printed = workshop.run(&program, &[workshop.model()]);
    assert_eq!(String::from_utf8(printed).unwrap(), facts(&special));
    let mut more = more;
    more[6].1 = OwnedValue::U32(u32::try_from(tiny_model::N_VOCAB).unwrap());
    special[8] = none;
    write(&more);
    let printed = workshop.run(&program, &[workshop.model()]);
    assert_eq!(String::from_utf8(printed).unwrap(), facts(&special));
}

#[test]
fn metadata_is_what_the_file_was_written_with() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/metadata.c", &[]);
    let mut random = Random::new(19);
    let values = metadata::random_values(&mut random).into_iter().enumerate();
    let mut more: Vec<_> =
        values.map(|(i, value)| (format!("test.{}.é{i}", random.below(1000)), value)).collect();
    more.push((String::new(), OwnedValue::U8(1)));
    let bytes = tiny_model::bytes_with_metadata(TensorType::F16, &more);
    std::fs::write(&workshop.model, &bytes).unwrap();
    let printed = String::from_utf8(workshop.run(&program, &[workshop.model()])).unwrap();

    // All pairs as the reader of the format has them, and those of this test as they were written.
    let directory = Directory::read(&bytes).unwrap();
    let all: Vec<String> =
        directory.metadata.iter().map(|(key, value)| metadata::printed(key, &value.into())).collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), all);
    for (key, value) in &more {
        assert!(all.contains(&metadata::printed(key, value)), "{key:?}: {value:?}");
    }
}

#[test]
fn opening_a_model_is_told_and_can_be_stopped() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/open.c", &[]);
    let model = std::fs::read(&workshop.model).unwrap();
    let text = workshop.folder.path().join("text.gguf");
    let prepare = || {
        std::fs::write(&workshop.model, &model).unwrap();
        std::fs::write(&text, tiny_model::text_bytes()).unwrap();
    };
    let output = workshop.run_after(prepare, &program, &[workshop.model(), text.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "the library itself is silent");

    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    let [summary, device, opened, text_alone, text_opened, chosen @ ..] = &lines[..] else {
        panic!("{printed}")
    };
    for part in ["longgen", "4 layers (1 full, 1 window, 2 blocks)", "258 tokens", " parameters in "] {
        assert!(summary.contains(part), "{summary}");
    }
    assert_eq!([*device, *opened, *text_opened], ["running on CPU, 1 threads", "opened", "opened"]);
    assert!(text_alone.starts_with("unheard-of: 258 tokens"), "{text_alone}");
    // Left to the library: the same, and why it is the processor unless it is a card.
    assert_eq!((chosen.first(), chosen.last()), (Some(summary), Some(opened)));
    match &chosen[1..chosen.len() - 1] {
        [why, device] => assert!(why.contains("CUDA device") && device.contains("CPU"), "{why}, {device}"),
        [device] => assert!(!device.contains("CPU"), "{device}"),
        other => panic!("{other:?}"),
    }
}

/// What plan.c prints for these parameters: what the Rust API plans, and really allocates.
fn plans(model: &Arc<Model>, params: &SessionParams) -> String {
    let plan = model.plan(params).unwrap();
    let session = Session::new(model, params).unwrap();
    let mut numbers = vec![vec![
        plan.n_ctx as usize,
        plan.chunk_tokens as usize,
        plan.kv_bytes(),
        plan.staging_bytes(),
        plan.scratch_bytes,
        plan.activation_bytes,
        plan.workspace_bytes,
        plan.table_bytes,
        plan.logits_bytes,
        model.session_bytes(),
    ]];
    drop(session);
    numbers.extend(plan.layers.iter().map(|layer| {
        let block_size = layer.attention.mask.block_size() as usize;
        vec![layer.n_slots as usize, block_size, layer.kv_bytes, layer.staging_bytes]
    }));
    let line =
        |numbers: &Vec<usize>| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ") + "\n";
    numbers.iter().map(line).collect()
}

#[test]
fn plans_are_what_is_allocated_and_limits_are_kept() {
    let workshop = Workshop::new();
    let model = Arc::new(Model::open(workshop.model(), &ModelParams::default()).unwrap());
    // As LG_KV_TYPE_* and LG_PRECISION_* number them.
    let kv_types = [KvType::F16, KvType::F32, KvType::Bf16, KvType::Q8];
    let precisions = [Precision::Fast, Precision::Exact];
    let mut random = Random::new(17);
    let mut arguments = vec![workshop.model().to_owned()];
    let mut expected = plans(&model, &SessionParams::default());
    for _ in 0..30 {
        let numbers = [2000, 300, kv_types.len(), precisions.len(), 9].map(|n| random.below(n));
        let [n_ctx, chunk_tokens, .., logits_rows] = numbers.map(|n| u32::try_from(n).unwrap());
        let [_, _, kv_type, precision, _] = numbers;
        let (kv_type, precision) = (kv_types[kv_type], precisions[precision]);
        expected += &plans(
            &model,
            &SessionParams { n_ctx, chunk_tokens, kv_type, precision, logits_rows, ..Default::default() },
        );
        arguments.extend(numbers.map(|n| n.to_string()));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed = workshop.run(&workshop.build(&C99, "tests/capi/plan.c", &[]), &arguments);
    assert_eq!(String::from_utf8(printed).unwrap(), expected);
}

#[test]
fn samplers_leave_what_the_definitions_leave() {
    let workshop = Workshop::new();
    workshop.run(&workshop.build(&C99, "tests/capi/sampler.c", &["-lm"]), &[workshop.model()]);
}

#[test]
fn a_text_stream_gives_the_whole_text() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/stream.c", &[workshop.model()]);
}

/// What Jinja2 makes of the same, from tests/data/text.
#[test]
fn chat_templates_render_as_jinja2_does() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/chat.c", &[]);
    let mut cases: Vec<Value> = serde_json::from_str(include_str!("data/text/chat.json")).unwrap();
    // A few; tests/text.rs has them all.
    cases.retain(|case| case["variables"].is_object() || case["name"].as_str().unwrap().starts_with("turns"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // One run for each template.
    for cases in cases.chunk_by(|a, b| a["template"] == b["template"]) {
        let mut arguments = vec![workshop.model().to_owned()];
        for case in cases {
            let mut variables = case["variables"].as_object().cloned().unwrap_or_default();
            for (name, token) in [("bos_token", "<s>"), ("eos_token", "</s>")] {
                variables.entry(name).or_insert(token.into());
            }
            let flags = u32::from(case["add_generation_prompt"] == true);
            let messages = case["messages"].as_array().unwrap();
            arguments.extend([
                Value::from(variables).to_string(),
                flags.to_string(),
                messages.len().to_string(),
            ]);
            arguments.extend(
                messages.iter().flat_map(|message| ["role", "content"].map(|key| text(&message[key]))),
            );
        }
        let template = ("tokenizer.chat_template".to_owned(), OwnedValue::Str(text(&cases[0]["template"])));
        std::fs::write(&workshop.model, tiny_model::bytes_with_metadata(TensorType::Q8_0, &[template]))
            .unwrap();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let written = String::from_utf8(workshop.run(&program, &arguments)).unwrap();
        let written: Vec<&str> = written.split_terminator('\0').collect();
        assert_eq!(written.len(), cases.len());
        for (case, written) in cases.iter().zip(written) {
            match case["text"].as_str() {
                Some(expected) => assert_eq!(written, expected, "{}", case["name"]),
                None => {
                    for part in ["invalid argument: chat template, line ", case["error"].as_str().unwrap()] {
                        assert!(written.contains(part), "{}: {written:?}", case["name"]);
                    }
                }
            }
        }
    }
}

#[test]
fn an_answer_is_what_its_steps_give() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/generate.c", &[workshop.model()]);
}

#[test]
fn sessions_say_what_they_hold_and_what_comes_next() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/state.c", &["-lm"]);
    workshop.run(&program, &[workshop.model()]);
}

#[test]
fn a_session_goes_on_from_its_file() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/save.c", &[workshop.model(), workshop.folder.path().to_str().unwrap()]);
}

#[test]
fn answers_to_one_prompt_are_those_of_sessions_of_their_own() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/fork.c", &[workshop.model()]);
}

#[test]
fn rows_of_a_prompt_get_what_they_get_one_by_one() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/rows.c", &[workshop.model()]);
}

#[test]
fn a_file_that_cannot_be_read_is_told_and_not_kept_open() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/io.c", &["-rdynamic"]);
    workshop.run(&program, &[workshop.model()]);
}

#[test]
fn threads_share_a_model_and_stop_each_other() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/threads.c", &[workshop.model()]);
}

#[test]
fn the_header_serves_cpp_and_c_in_one_program() {
    let workshop = Workshop::new();
    let part = workshop.compile(&C99, "tests/capi/from_c.c", &["-c"]);
    let program = workshop.build(&CPP, "tests/capi/from_cpp.cpp", &[part.to_str().unwrap()]);
    workshop.run(&program, &[workshop.model()]);
}

#[test]
fn the_cpp_header_gives_what_the_c_header_gives() {
    const MORE: [&str; 6] = ["-Wpedantic", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"];
    let workshop = Workshop::new();
    let text = |text: &str| OwnedValue::Str(text.to_owned());
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    let more = [
        ("tokenizer.chat_template", text(template)),
        ("test.u64", OwnedValue::U64(u64::MAX)),
        ("test.i64", OwnedValue::I64(-5)),
        ("test.f64", OwnedValue::F64(0.1)),
        ("test.bool", OwnedValue::Bool(true)),
        ("test.text", text("a\0é")),
        ("test.empty", text("")),
        ("test.array", OwnedValue::U64s(vec![7, 8, 9])),
    ];
    let more = more.map(|(key, value)| (key.to_owned(), value));
    std::fs::write(&workshop.model, tiny_model::bytes_with_metadata(TensorType::Q8_0, &more)).unwrap();
    for standard in ["-std=c++17", "-std=c++20"] {
        let compiler = [&["c++", standard], &MORE[..]].concat();
        let part = workshop.compile(&compiler, "tests/capi/cpp_part.cpp", &["-c"]);
        let program = workshop.build(&compiler, "tests/capi/cpp.cpp", &[part.to_str().unwrap()]);
        workshop.run(&program, &[workshop.model(), "/no/such/model.gguf"]);
    }
}

#[test]
fn the_headers_are_clean_in_every_standard_and_compiler() {
    const WARNINGS: [&str; 8] =
        ["-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-Wcast-qual", "-Werror"];
    let workshop = Workshop::new();
    let check = |header: &str, compiler: &str, standards: &[&str], more: &[&str]| {
        let extension = if compiler.ends_with('+') { "cpp" } else { "c" };
        let source = workshop.folder.path().join(format!("alone.{extension}"));
        std::fs::write(&source, format!("#include <{header}>\n")).unwrap();
        for standard in standards {
            let standard = format!("-std={standard}");
            let compiler = [&[compiler, &standard], &WARNINGS[..], more].concat();
            workshop.compile(&compiler, source.to_str().unwrap(), &["-c"]);
        }
    };
    for [c, cpp] in [["cc", "c++"], ["clang", "clang++"]] {
        if c == "cc" || has(c, "--version") {
            check("longgen.h", c, &["c99", "c11", "c17", "c2x"], &["-Wstrict-prototypes"]);
            check("longgen.h", cpp, &["c++11", "c++17", "c++20", "c++2b"], &["-Wold-style-cast"]);
            check("longgen.hpp", cpp, &["c++17", "c++20", "c++2b"], &["-Wold-style-cast"]);
        }
    }
}

#[test]
fn the_cpp_header_reaches_every_function() {
    let header = include_str!("../include/longgen.hpp");
    let names: Vec<&str> = header.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for symbol in include_str!("abi/symbols.txt").lines() {
        assert!(names.contains(&symbol), "include/longgen.hpp does not call {symbol}");
    }
}
