//! What a session will cost, as a person reads it.

use std::fmt::Write;

use anyhow::Result;
use longgen::attention::plan::LayerAttention;
use longgen::{Model, SessionParams};

use crate::plan::{full, table};

/// The attention plan with its exact bytes; nothing is allocated for it.
///
/// # Errors
/// Parameters out of range.
pub fn report(model: &Model, params: &SessionParams) -> Result<String> {
    let plan = model.plan(params)?;
    let attention: Vec<LayerAttention> = plan.layers.iter().map(|layer| layer.attention.clone()).collect();
    let mut text =
        format!("{} tokens of context, steps of at most {} tokens\n\n", plan.n_ctx, plan.chunk_tokens);
    text += &table(&attention, |layers| {
        let layers = &plan.layers[layers];
        let sum = |n: &dyn Fn(&longgen::session::LayerPlan) -> usize| layers.iter().map(n).sum::<usize>();
        let slots = sum(&|layer| layer.n_slots as usize);
        format!("{slots} blocks, {} bytes", grouped(sum(&|layer| layer.kv_bytes)))
    });
    let all_full = model.plan_for(params, &full(model.config().into()))?.kv_bytes();
    let share = plan.kv_bytes() as f64 / all_full as f64 * 100.0;
    writeln!(text)?;
    for (name, bytes) in [
        ("KV cache", plan.kv_bytes()),
        ("staging", plan.staging_bytes()),
        ("scratch", plan.scratch_bytes),
        ("activations", plan.activation_bytes),
        ("workspace", plan.workspace_bytes),
        ("tables", plan.table_bytes),
        ("logits", plan.logits_bytes),
        ("total", plan.total_bytes()),
    ] {
        writeln!(text, "{name:12} {:>18} bytes", grouped(bytes))?;
    }
    writeln!(
        text,
        "restore      {:>18} bytes at most for restore points, beside them",
        grouped(plan.restore_bytes)
    )?;
    writeln!(
        text,
        "\nWith full attention in every layer, the KV cache would take {} bytes; this is {share:.1} %.",
        grouped(all_full)
    )?;
    Ok(text)
}

/// A number with its digits in groups of three.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_in_groups_of_three() {
        assert_eq!([0, 12, 123, 1234, 1_234_567].map(grouped), ["0", "12", "123", "1,234", "1,234,567"]);
    }
}
