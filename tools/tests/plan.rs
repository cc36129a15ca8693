//! Attention plans from presets, flags and JSON.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen_tools::plan::{AttentionArgs, PlanShape, from_json, table, to_json};
use serde_json::{Value, json};
use support::python;
use support::random::Random;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    attention: AttentionArgs,
}

const SHAPE: PlanShape = PlanShape { n_layers: 30, n_heads: 9, n_kv_heads: 3 };

fn plan(flags: &str) -> Result<Option<Vec<LayerAttention>>, String> {
    let cli = Cli::try_parse_from(["test"].into_iter().chain(flags.split_whitespace()));
    cli.map_err(|error| error.to_string())?.attention.plan(SHAPE).map_err(|error| format!("{error:#}"))
}

fn blocks(
    block_size: u32,
    local_blocks: u32,
    sink_blocks: u32,
    stride: u32,
    phases: [u32; 3],
) -> LayerAttention {
    let mask = Mask::Blocks { block_size, local_blocks, sink_blocks, stride };
    LayerAttention { mask, phases: phases.into_iter().flat_map(|phase| [phase; 3]).collect() }
}

fn layers(full: std::ops::Range<usize>, sparse: &LayerAttention) -> Vec<LayerAttention> {
    let layer = |i| if full.contains(&i) { LayerAttention::uniform(Mask::Full, 9) } else { sparse.clone() };
    (0..30).map(layer).collect()
}

#[test]
fn presets_are_those_of_the_recipe() {
    assert_eq!(plan(""), Ok(None));
    assert_eq!(plan("--attention full"), Ok(Some(layers(0..30, &blocks(64, 1, 0, 0, [0; 3])))));
    assert_eq!(plan("--attention longgen-sink"), Ok(Some(layers(10..20, &blocks(64, 32, 1, 0, [0; 3])))));
    let spread = blocks(64, 16, 0, 64, [0, 21, 42]);
    assert_eq!(plan("--attention longgen-blocks"), Ok(Some(layers(10..20, &spread))));
}

#[test]
fn flags_change_the_numbers_of_a_preset() {
    assert_eq!(
        plan("--attention longgen-sink --block 32 --local 4 --sink 2 --full-layers none"),
        Ok(Some(layers(0..0, &blocks(32, 4, 2, 0, [0; 3]))))
    );
    // Phases are spread over the stride that is given.
    let spread = blocks(64, 16, 0, 8, [0, 2, 5]);
    assert_eq!(
        plan("--attention longgen-blocks --stride 8 --full-layers 3-7,8"),
        Ok(Some(layers(3..9, &spread)))
    );
    let given = blocks(64, 16, 0, 64, [1, 5, 9]);
    let found = plan("--attention longgen-blocks --phases 1,5,9 --full-layers 0-29");
    assert_eq!(found, Ok(Some(layers(0..30, &given))));
    assert_eq!(plan("--attention longgen-blocks --phases 1,5,9"), Ok(Some(layers(10..20, &given))));
    let per_head = plan("--attention longgen-blocks --phases 0,1,2,3,4,5,6,7,8").unwrap().unwrap();
    assert_eq!(per_head[0].phases, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn flags_that_make_no_sense_are_refused_by_name() {
    for (flags, parts) in [
        ("--local 4", ["--local", "longgen-sink"]),
        ("--attention full --full-layers 0-3", ["--full-layers", "longgen-blocks"]),
        ("--attention plan.json --stride 4", ["--stride", "preset"]),
        ("--attention longgen-sink --block 48", ["block_size 48", "64"]),
        ("--attention longgen-sink --local 0", ["local_blocks 0", "flags"]),
        ("--attention longgen-sink --local x", ["--local", "x"]),
        ("--attention longgen-blocks --phases 1,2", ["--phases: 2 numbers", "9 (query heads) or 3"]),
        ("--attention longgen-sink --full-layers 5-30", ["--full-layers: layer 30", "0 to 29"]),
        ("--attention longgen-sink --full-layers 7-5", ["--full-layers", "7-5"]),
        ("--attention longgen-sink --full-layers 1,,2", ["--full-layers", "no layer"]),
        ("--attention /no/such/plan.json", ["/no/such/plan.json", "longgen-blocks or a JSON file"]),
    ] {
        let message = plan(flags).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{flags}: {message:?} does not name {part:?}");
        }
    }
}

const SMALL: PlanShape = PlanShape { n_layers: 2, n_heads: 4, n_kv_heads: 2 };

#[test]
fn json_says_what_each_layer_sees() {
    let value = json!({"attention": [
        {"kind": "window", "window_tokens": 4096, "sink_tokens": 4},
        {"kind": "blocks", "block_size": 64, "local_blocks": 4, "sink_blocks": 1, "stride": 8, "phases": [1, 5]},
    ]});
    let expected = [
        LayerAttention::uniform(Mask::Window { window_tokens: 4096, sink_tokens: 4 }, 4),
        LayerAttention {
            mask: Mask::Blocks { block_size: 64, local_blocks: 4, sink_blocks: 1, stride: 8 },
            phases: vec![1, 1, 5, 5],
        },
    ];
    assert_eq!(from_json(&value, SMALL).unwrap(), expected);
    // As in a config.json, whose other fields do not matter.
    assert_eq!(from_json(&json!({"hidden_size": 3, "longgen": value}), SMALL).unwrap(), expected);
    assert_eq!(from_json(&json!({"attention": to_json(&expected)}), SMALL).unwrap(), expected);
    // What is not said is 0.
    let value = json!({"attention": [
        {"kind": "window", "window_tokens": 9}, {"kind": "blocks", "block_size": 16, "local_blocks": 1},
    ]});
    let expected = [
        LayerAttention::uniform(Mask::Window { window_tokens: 9, sink_tokens: 0 }, 4),
        LayerAttention::uniform(
            Mask::Blocks { block_size: 16, local_blocks: 1, sink_blocks: 0, stride: 0 },
            4,
        ),
    ];
    assert_eq!(from_json(&value, SMALL).unwrap(), expected);
}

/// Plans that are none for the model, and what is said of them.
fn wrong_plans() -> Vec<(Value, &'static str)> {
    let blocks = |field: &str, value: Value| {
        let mut layer = json!({"kind": "blocks", "block_size": 64, "local_blocks": 4});
        layer[field] = value;
        json!({"attention": [{"kind": "full"}, layer]})
    };
    let missing = json!({"attention": [{"kind": "full"}, {"kind": "blocks", "block_size": 64}]});
    vec![
        (json!([]), "plan: expected an object, found a list of 0"),
        (json!({}), "attention is missing"),
        (json!({"attention": {}}), "attention: expected a list, found an object"),
        (json!({"attention": [], "layers": 3}), "layers: unknown field, a plan has only attention"),
        (json!({"attention": [{"kind": "full"}]}), "attention: 1 layers, the model has 2"),
        (json!({"attention": [{"kind": "full"}, 3]}), "attention[1]: expected an object, found 3"),
        (json!({"attention": [{}, 3]}), "attention[0].kind is missing"),
        (json!({"attention": [{"kind": 3}, 3]}), "attention[0].kind: expected a string, found 3"),
        (
            json!({"attention": [{"kind": "sink"}, 3]}),
            "attention[0].kind: \"sink\", expected full, window or blocks",
        ),
        (
            json!({"attention": [{"kind": "full", "stride": 3}, 3]}),
            "attention[0].stride: unknown field, this kind has none",
        ),
        (
            json!({"attention": [{"kind": "window", "window": 3}, 3]}),
            "attention[0].window: unknown field, this kind has window_tokens, sink_tokens",
        ),
        (missing, "attention[1].local_blocks is missing"),
        (
            blocks("local_blocks", json!("4")),
            "attention[1].local_blocks: expected a whole number below 2^32, found \"4\"",
        ),
        (blocks("stride", json!(-1)), "attention[1].stride: expected a whole number below 2^32, found -1"),
        (
            blocks("sink_blocks", json!(4294967296u64)),
            "attention[1].sink_blocks: expected a whole number below 2^32, found 4294967296",
        ),
        (blocks("local_blocks", json!(0)), "attention[1].local_blocks 0: a token sees at least itself"),
        (blocks("block_size", json!(48)), "attention[1].block_size 48 is none of 16, 32, 64, 128, 256"),
        (
            blocks("phases", json!([1, 2, 3])),
            "attention[1].phases: 3 numbers, expected 4 (query heads) or 2 (kv heads)",
        ),
        (
            blocks("phases", json!([1, null])),
            "attention[1].phases[1]: expected a whole number below 2^32, found null",
        ),
        (blocks("phases", json!(1)), "attention[1].phases: expected a list, found 1"),
    ]
}

#[test]
fn errors_in_json_have_its_path() {
    for (value, expected) in wrong_plans() {
        let error = from_json(&value, SMALL).unwrap_err();
        assert_eq!(format!("{error:#}"), expected);
    }
}

/// A plan of layers that are right, or that lack a field, or have any value in one.
fn any_plan(random: &mut Random) -> Value {
    const FIELDS: &str =
        "kind window_tokens sink_tokens block_size local_blocks sink_blocks stride phases unknown";
    let right = json!([
        {"kind": "full"},
        {"kind": "window", "window_tokens": 9},
        {"kind": "window", "window_tokens": 1, "sink_tokens": 0},
        {"kind": "blocks", "block_size": 32, "local_blocks": 1},
        {"kind": "blocks", "block_size": 64, "local_blocks": 4, "sink_blocks": 1, "stride": 8, "phases": [1, 5]},
    ]);
    // Both sides of every bound, and what is no number.
    let numbers = json!([
        0,
        1,
        2,
        15,
        16,
        48,
        64,
        256,
        512,
        16777216,
        16777217,
        1073741824,
        1073741825,
        4294967296u64,
        -1,
        1.5,
        "4",
        true,
        null,
        {},
    ]);
    let fields: Value = FIELDS.split(' ').collect();
    let mut pick = |list: &Value| list[random.below(list.as_array().unwrap().len())].clone();
    let mut layer = || {
        let (mut layer, field, number) = (pick(&right), pick(&fields), pick(&numbers));
        let field = field.as_str().unwrap();
        let value = match field {
            "phases" => pick(&json!([[number, 1], [0, 1, 2, number], [], number])),
            _ => number,
        };
        match pick(&json!(["keep", "change", "change", "remove"])).as_str() {
            Some("change") => layer[field] = value,
            Some("remove") => _ = layer.as_object_mut().unwrap().remove(field),
            _ => {}
        }
        layer
    };
    json!({"attention": [layer(), layer()]})
}

#[test]
fn the_schema_agrees_with_the_parser() {
    let Some(python) = python::with("jsonschema") else { return };
    let mut random = Random::new(5);
    let mut plans: Vec<Value> = wrong_plans().into_iter().map(|(plan, _)| plan).collect();
    plans.extend((0..3000).map(|_| any_plan(&mut random)));

    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plans.json");
    fs::write(&list, Value::from(plans.clone()).to_string()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.arg(root.join("tests/schema.py")).arg(root.join("../format/longgen.schema.json")).arg(&list);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let follows: Vec<bool> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(follows.len(), plans.len());

    let mut n_right = 0;
    for (plan, follows) in plans.iter().zip(follows) {
        let result = from_json(plan, SMALL).map_err(|error| format!("{error:#}"));
        // A schema knows neither layers nor heads of the model.
        let is_right = match &result {
            Ok(_) => true,
            Err(error) => error.contains(", the model has 2") || error.contains("3 numbers, expected 4"),
        };
        assert_eq!(follows, is_right, "{plan}: {result:?}");
        n_right += usize::from(is_right);
    }
    assert!((500..2500).contains(&n_right), "{n_right} right plans");
}

#[test]
fn a_table_has_a_line_for_layers_that_are_alike() {
    let plan = plan("--attention longgen-blocks --full-layers 0,10-19").unwrap().unwrap();
    let text = table(&plan, |layers| format!("{} layers", layers.len()));
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], ["layers", "0", "full", "everything", "1", "layers"]);
    let strided = "layers 1-9 blocks blocks of 64: last 16, 1 in 64 (phases 0 21 42) 9 layers";
    assert_eq!(lines[1].join(" "), strided);
    assert_eq!(lines[3].join(" "), strided.replace("1-9", "20-29").replace("9 layers", "10 layers"));
}
