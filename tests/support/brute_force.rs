//! The transformer of the tiny model as its formulas read, token by token in f64.

use longgen::attention::plan::LayerAttention;
use longgen_format::{Directory, quant};

use super::tiny_model::{HEAD_DIM, N_HEADS, N_KV_HEADS};

/// The key and the value of a token in a KV head.
pub type Row = [Vec<f32>; 2];

fn tensor(file: &Directory<'_>, name: &str) -> Vec<f64> {
    let info = file.tensor(name).unwrap();
    let mut values = vec![0.0; usize::try_from(info.n_elems()).unwrap()];
    quant::dequantize(info.ty().unwrap(), file.tensor_bytes(info), &mut values).unwrap();
    values.into_iter().map(f64::from).collect()
}

fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn normed(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean_square + 1e-5).sqrt() * w).collect()
}

/// Turns the heads of a row, whose halves are pairs, to a position.
fn turned(mut row: Vec<f64>, position: usize) -> Vec<f64> {
    for head in row.chunks_mut(HEAD_DIM) {
        for i in 0..HEAD_DIM / 2 {
            let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / HEAD_DIM as f64);
            let (x, y) = (head[i], head[i + HEAD_DIM / 2]);
            head[i] = x * angle.cos() - y * angle.sin();
            head[i + HEAD_DIM / 2] = x * angle.sin() + y * angle.cos();
        }
    }
    row
}

/// Of each layer, token and KV head the key and the value.
pub fn keys_and_values(file: &[u8], plan: &[LayerAttention], tokens: &[u32]) -> Vec<Vec<Vec<Row>>> {
    let file = Directory::read(file).unwrap();
    let embedding = tensor(&file, "token_embd.weight");
    let d_model = embedding.len() / super::tiny_model::N_VOCAB;
    let row = |&token: &u32| embedding[token as usize * d_model..][..d_model].to_vec();
    let mut xs: Vec<Vec<f64>> = tokens.iter().map(row).collect();
    let mut layers = Vec::new();
    for (i, LayerAttention { mask, phases }) in plan.iter().enumerate() {
        let of = |name: &str| tensor(&file, &format!("blk.{i}.{name}"));
        let (norm, q, bias) = (of("attn_norm.weight"), of("attn_q.weight"), of("attn_q.bias"));
        let (k, v, o) = (of("attn_k.weight"), of("attn_v.weight"), of("attn_output.weight"));
        let (gate, up, down) = (of("ffn_gate.weight"), of("ffn_up.weight"), of("ffn_down.weight"));
        let ffn_norm = of("ffn_norm.weight");
        let inputs: Vec<_> = xs.iter().map(|x| normed(x, &norm)).collect();
        let keys: Vec<_> = inputs.iter().enumerate().map(|(j, x)| turned(product(&k, x), j)).collect();
        let values: Vec<_> = inputs.iter().map(|x| product(&v, x)).collect();
        for (position, (x, input)) in xs.iter_mut().zip(&inputs).enumerate() {
            let query = product(&q, input).iter().zip(&bias).map(|(x, b)| x + b).collect();
            let query = turned(query, position);
            let mut out = Vec::new();
            for (head, &phase) in phases.iter().enumerate() {
                let at = head * HEAD_DIM..(head + 1) * HEAD_DIM;
                let kv = head / (N_HEADS / N_KV_HEADS) * HEAD_DIM;
                let number = |i: usize| u32::try_from(i).unwrap();
                let seen = |&j: &usize| mask.sees(number(position), number(j), phase);
                let seen: Vec<usize> = (0..=position).filter(seen).collect();
                let score = |j: &usize| {
                    let dot: f64 = query[at.clone()].iter().zip(&keys[*j][kv..]).map(|(q, k)| q * k).sum();
                    (dot / (HEAD_DIM as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..HEAD_DIM).map(|d| {
                    seen.iter().zip(&weights).map(|(&j, w)| w / total * values[j][kv + d]).sum::<f64>()
                }));
            }
            x.iter_mut().zip(product(&o, &out)).for_each(|(x, y)| *x += y);
            let input = normed(x, &ffn_norm);
            let units = product(&gate, &input).into_iter().zip(product(&up, &input));
            let units: Vec<f64> = units.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            x.iter_mut().zip(product(&down, &units)).for_each(|(x, y)| *x += y);
        }
        let heads = |row: &Vec<f64>| -> Vec<Vec<f32>> {
            row.chunks(HEAD_DIM).map(|head| head.iter().map(|&x| to_f32(x)).collect()).collect()
        };
        let rows = |(key, value): (&Vec<f64>, &Vec<f64>)| -> Vec<Row> {
            heads(key).into_iter().zip(heads(value)).map(|(key, value)| [key, value]).collect()
        };
        layers.push(keys.iter().zip(&values).map(rows).collect());
    }
    layers
}

#[expect(clippy::cast_possible_truncation, reason = "the rounding to f32 is meant")]
fn to_f32(x: f64) -> f32 {
    x as f32
}
