//! The binary interface: exported names, the soname, and the layout of the structs. A change here is one for the "ABI"
//! part of the change log; a name that goes away, or a field that moves, needs another soname.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::mem::{offset_of, size_of};
use std::process::Command;

use longgen::capi::attention::lg_layer_attention;
use longgen::capi::chat::lg_message;
use longgen::capi::generate::{lg_generate_params, lg_generate_result};
use longgen::capi::logits::lg_token_logprob;
use longgen::capi::model::lg_model_params;
use longgen::capi::plan::{lg_layer_plan, lg_memory_plan};
use longgen::capi::prompt::lg_prompt_result;
use longgen::capi::sampler::{lg_choice, lg_logit_bias, lg_sampler_params};
use longgen::capi::session::lg_session_params;
use longgen::capi::state::lg_counters;
use longgen::capi::status::lg_error;
use support::library;

fn output_of(program: &str, options: &[&str]) -> String {
    let output = Command::new(program).args(options).arg(library::path()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn exactly_the_listed_names_are_exported() {
    let names = output_of("nm", &["--dynamic", "--defined-only", "--format=just-symbols"]);
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    let listed: Vec<&str> = include_str!("abi/symbols.txt").lines().collect();
    assert_eq!(names, listed, "exported, and listed in tests/abi/symbols.txt");
}

#[test]
fn programs_find_the_library_by_its_abi_version() {
    let dynamic = output_of("readelf", &["--dynamic", "--wide"]);
    let soname = dynamic.lines().find(|line| line.contains("(SONAME)")).unwrap();
    assert!(soname.ends_with(&format!("[{}]", library::soname())), "{soname}");
}

/// The same numbers are in tests/capi/layout.c, for the compilers of C.
#[test]
fn structs_lie_in_memory_as_they_always_did() {
    assert_eq!(size_of::<lg_error>(), 648);
    assert_eq!([offset_of!(lg_error, code), offset_of!(lg_error, message)], [8, 12]);
    assert_eq!(offset_of!(lg_error, r#where), 524);

    assert_eq!(size_of::<lg_model_params>(), 64);
    assert_eq!([offset_of!(lg_model_params, load), offset_of!(lg_model_params, device)], [8, 12]);
    assert_eq!([offset_of!(lg_model_params, n_threads), offset_of!(lg_model_params, verify)], [16, 20]);
    assert_eq!([offset_of!(lg_model_params, vocab_only), offset_of!(lg_model_params, reserved)], [24, 28]);
    assert_eq!([offset_of!(lg_model_params, on_progress), offset_of!(lg_model_params, on_log)], [32, 40]);
    assert_eq!([offset_of!(lg_model_params, user), offset_of!(lg_model_params, cancel)], [48, 56]);

    assert_eq!(size_of::<lg_session_params>(), 48);
    assert_eq!([offset_of!(lg_session_params, n_ctx), offset_of!(lg_session_params, chunk_tokens)], [8, 12]);
    assert_eq!([offset_of!(lg_session_params, kv_type), offset_of!(lg_session_params, precision)], [16, 20]);
    assert_eq!(
        [offset_of!(lg_session_params, logits_rows), offset_of!(lg_session_params, reserved)],
        [24, 28]
    );
    assert_eq!(
        [offset_of!(lg_session_params, max_bytes), offset_of!(lg_session_params, restore_bytes)],
        [32, 40]
    );

    assert_eq!(size_of::<lg_layer_attention>(), 40);
    assert_eq!([offset_of!(lg_layer_attention, kind), offset_of!(lg_layer_attention, block_size)], [8, 12]);
    assert_eq!(
        [offset_of!(lg_layer_attention, local_blocks), offset_of!(lg_layer_attention, sink_blocks)],
        [16, 20]
    );
    assert_eq!(
        [offset_of!(lg_layer_attention, stride), offset_of!(lg_layer_attention, window_tokens)],
        [24, 28]
    );
    assert_eq!(
        [offset_of!(lg_layer_attention, sink_tokens), offset_of!(lg_layer_attention, reserved)],
        [32, 36]
    );

    assert_eq!(size_of::<lg_memory_plan>(), 88);
    assert_eq!(offset_of!(lg_memory_plan, restore_bytes), 80);
    assert_eq!([offset_of!(lg_memory_plan, n_ctx), offset_of!(lg_memory_plan, chunk_tokens)], [8, 12]);
    assert_eq!([offset_of!(lg_memory_plan, kv_bytes), offset_of!(lg_memory_plan, staging_bytes)], [16, 24]);
    assert_eq!(
        [offset_of!(lg_memory_plan, scratch_bytes), offset_of!(lg_memory_plan, activation_bytes)],
        [32, 40]
    );
    assert_eq!(
        [offset_of!(lg_memory_plan, workspace_bytes), offset_of!(lg_memory_plan, table_bytes)],
        [48, 56]
    );
    assert_eq!([offset_of!(lg_memory_plan, logits_bytes), offset_of!(lg_memory_plan, total_bytes)], [64, 72]);

    assert_eq!(size_of::<lg_prompt_result>(), 40);
    assert_eq!([offset_of!(lg_prompt_result, n_common), offset_of!(lg_prompt_result, n_reused)], [8, 16]);
    assert_eq!(
        [offset_of!(lg_prompt_result, n_computed), offset_of!(lg_prompt_result, n_limiting_layers)],
        [24, 32]
    );
    assert_eq!(offset_of!(lg_prompt_result, limiting_layer), 36);

    assert_eq!(size_of::<lg_layer_plan>(), 32);
    assert_eq!([offset_of!(lg_layer_plan, n_slots), offset_of!(lg_layer_plan, block_size)], [8, 12]);
    assert_eq!([offset_of!(lg_layer_plan, kv_bytes), offset_of!(lg_layer_plan, staging_bytes)], [16, 24]);

    assert_eq!(size_of::<lg_sampler_params>(), 72);
    assert_eq!([offset_of!(lg_sampler_params, seed), offset_of!(lg_sampler_params, temperature)], [8, 16]);
    assert_eq!([offset_of!(lg_sampler_params, top_k), offset_of!(lg_sampler_params, top_p)], [20, 24]);
    assert_eq!(offset_of!(lg_sampler_params, min_p), 28);
    assert_eq!(offset_of!(lg_sampler_params, repeat_penalty), 32);
    assert_eq!(offset_of!(lg_sampler_params, repeat_last_n), 36);
    assert_eq!(offset_of!(lg_sampler_params, typical_p), 40);
    assert_eq!(offset_of!(lg_sampler_params, frequency_penalty), 44);
    assert_eq!(offset_of!(lg_sampler_params, presence_penalty), 48);
    assert_eq!(offset_of!(lg_sampler_params, dry_multiplier), 52);
    assert_eq!(offset_of!(lg_sampler_params, dry_base), 56);
    assert_eq!(offset_of!(lg_sampler_params, dry_allowed_length), 60);
    assert_eq!(
        [offset_of!(lg_sampler_params, dry_last_n), offset_of!(lg_sampler_params, reserved)],
        [64, 68]
    );

    assert_eq!(size_of::<lg_generate_params>(), 64);
    assert_eq!(
        [offset_of!(lg_generate_params, max_tokens), offset_of!(lg_generate_params, ignore_end)],
        [8, 12]
    );
    assert_eq!([offset_of!(lg_generate_params, stops), offset_of!(lg_generate_params, n_stops)], [16, 24]);
    assert_eq!(
        [offset_of!(lg_generate_params, on_progress), offset_of!(lg_generate_params, on_text)],
        [32, 40]
    );
    assert_eq!([offset_of!(lg_generate_params, user), offset_of!(lg_generate_params, cancel)], [48, 56]);
    assert_eq!(size_of::<lg_generate_result>(), 32);
    assert_eq!([offset_of!(lg_generate_result, n_tokens), offset_of!(lg_generate_result, reason)], [8, 16]);
    assert_eq!(offset_of!(lg_generate_result, stop_index), 20);
    assert_eq!(
        [offset_of!(lg_generate_result, pending_token), offset_of!(lg_generate_result, end_token)],
        [24, 28]
    );

    assert_eq!([size_of::<lg_message>(), offset_of!(lg_message, role_bytes)], [32, 8]);
    assert_eq!([offset_of!(lg_message, content), offset_of!(lg_message, content_bytes)], [16, 24]);

    assert_eq!([size_of::<lg_logit_bias>(), offset_of!(lg_logit_bias, bias)], [8, 4]);
    assert_eq!([size_of::<lg_choice>(), offset_of!(lg_choice, logit), offset_of!(lg_choice, p)], [12, 4, 8]);

    assert_eq!(size_of::<lg_counters>(), 40);
    assert_eq!(offset_of!(lg_counters, n_prompt_tokens), 8);
    assert_eq!(offset_of!(lg_counters, n_generated_tokens), 16);
    assert_eq!([offset_of!(lg_counters, prompt_ms), offset_of!(lg_counters, generated_ms)], [24, 32]);

    assert_eq!(size_of::<lg_token_logprob>(), 8);
    assert_eq!([offset_of!(lg_token_logprob, token), offset_of!(lg_token_logprob, logprob)], [0, 4]);
}
