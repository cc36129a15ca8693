//! Windows of attention as `config.json` spells them: `sliding_window`, and `layer_types` where not all layers have it.

use anyhow::{Context, Result, bail, ensure};
use longgen::attention::mask::Mask;
use longgen::attention::plan::{LayerAttention, MAX_CTX};

use super::json::Object;
use crate::plan::{PlanShape, shown};

const FIELDS: [&str; 3] = ["layer_types", "sliding_window", "use_sliding_window"];

/// Refuses these fields beside a plan of our own.
pub fn refuse(config: &Object<'_>) -> Result<()> {
    match FIELDS.iter().find(|field| config.get(field).is_some()) {
        None => Ok(()),
        Some(field) => {
            bail!("config.json: {field}: longgen says what each layer attends to, one of them must go")
        }
    }
}

/// The plan that these fields give; `None` means that every layer sees everything.
pub fn read(config: &Object<'_>, shape: PlanShape) -> Result<Option<Vec<LayerAttention>>> {
    let window_tokens = config.opt_up_to("sliding_window", MAX_CTX)?;
    if let Some(is_used) = config.opt_bool("use_sliding_window")? {
        let window = window_tokens.map_or("null".to_owned(), |n| n.to_string());
        ensure!(
            is_used == window_tokens.is_some(),
            "config.json: use_sliding_window: {is_used}, but sliding_window is {window}"
        );
    }
    let layer = |mask| LayerAttention::uniform(mask, shape.n_heads);
    let window = window_tokens.map(|window_tokens| layer(Mask::Window { window_tokens, sink_tokens: 0 }));
    let Some(types) = config.opt_list("layer_types")? else { return in_every_layer(config, window, shape) };

    let PlanShape { n_layers, .. } = shape;
    ensure!(
        types.len() == n_layers,
        "config.json: layer_types: {} layers, the model has {n_layers}",
        types.len()
    );
    let of_type = |(i, ty): (usize, &serde_json::Value)| match ty.as_str() {
        Some("full_attention") => Ok(layer(Mask::Full)),
        Some("sliding_attention") => window
            .clone()
            .with_context(|| format!("config.json: layer_types[{i}]: {ty}, but there is no sliding_window")),
        _ => bail!(
            "config.json: layer_types[{i}]: {}, expected full_attention or sliding_attention",
            shown(ty)
        ),
    };
    types.iter().enumerate().map(of_type).collect::<Result<_>>().map(Some)
}

/// What a window means where nothing says which layers have it.
fn in_every_layer(
    config: &Object<'_>,
    window: Option<LayerAttention>,
    shape: PlanShape,
) -> Result<Option<Vec<LayerAttention>>> {
    let is_llama = config.require_str("model_type")? == "llama";
    match window {
        Some(_) if is_llama => bail!(
            "config.json: sliding_window: layers of a llama model see everything unless layer_types says which do not"
        ),
        Some(window) => Ok(Some(vec![window; shape.n_layers])),
        None => {
            // Of these families transformers then takes a window of 4096.
            ensure!(
                is_llama || config.has("sliding_window"),
                "config.json: sliding_window is missing, null means that every layer sees everything"
            );
            Ok(None)
        }
    }
}
