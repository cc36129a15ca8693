//! The attention of a layer over many tokens of one session, on Hopper: nothing between its products has 32 bits.

use super::device::Matrix16;
use super::gemm::{self, Source};
use super::matmul::Rows;
use super::params::{self, HEAD_KEY, HEAD_QUERY, HEAD_VALUE, word};
use super::workspace::Workspace;
use super::{CudaBackend, attn};
use crate::backend::Backend;
use crate::backend::args::*;
use crate::error::Result;

/// Queries, keys and values leave their products turned and in the type of the cache, and attention leaves what it computes
/// as the product with `o` wants it; where that is not possible, one op follows the other.
pub(super) fn attention(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: AttentionArgs<'_, '_, CudaBackend>,
) -> Result<()> {
    if !is_served(backend, ws, &args)? {
        return args.one_by_one(backend, ws);
    }
    let AttentionArgs { x, n_rows, norm, eps, q, k, v, o, scratch, attend } = args;
    let AppendAttnArgs { out, rope, n_heads, scale, softcap, sink_logits, mask, phases, seqs, .. } = attend;
    let (seq, turned) = (&mut seqs[0], attend.q);
    let shape = seq.shape;
    let head_dim = shape.head_dim;
    let n_elems = n_rows * n_heads * head_dim;
    let turned_at = turned.f32s(n_elems)?;

    let input = Input::Norm(Norm { x: &*x, first_row: 0, weight: norm, eps, scratch });
    let rows = Rows::new(&input, n_rows, q.w.cols)?;
    let normed = gemm::convert(backend, ws, Source::Rows(rows), n_rows, &q.w)?;
    let params::Rope { table, pairing, .. } = attn::rope(&rope, n_rows, head_dim)?;
    let append = attn::append_seq(&seq.append_target());
    for (kind, part) in [(HEAD_QUERY, q), (HEAD_KEY, k), (HEAD_VALUE, v)] {
        let heads = params::Heads {
            q: turned_at,
            seq: append,
            rope: table,
            pairing,
            kind,
            heads_of_all: word(n_heads),
            scale,
            ..params::Heads::default()
        };
        gemm::heads(backend, ws, &part.w, &normed, &shape, &heads)?;
    }

    let is_bf16 = gemm::is_bf16(&o.w);
    let attended = Matrix16 { address: out.f32s(n_elems)?, rows: n_rows, cols: n_heads * head_dim, is_bf16 };
    let segments = seq.segments();
    let views = [AttnSeq { desc: seq.desc, segments: &segments }];
    let attend =
        AttnArgs { out, q: turned, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs: &views };
    attn::attn_rounded(backend, ws, &attend, is_bf16)?;
    backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut seq.stage() })?;
    gemm::product(backend, ws, &mut o.to(x), &attended, true)?;
    ws.keep_pace()
}

fn is_served(
    backend: &CudaBackend,
    ws: &Workspace,
    args: &AttentionArgs<'_, '_, CudaBackend>,
) -> Result<bool> {
    let AttentionArgs { n_rows, q, k, v, o, attend, .. } = args;
    let AppendAttnArgs { rope, n_heads, softcap, seqs, .. } = attend;
    let [seq] = &**seqs else { return Ok(false) };
    let (shape, rows) = (seq.shape, seq.desc.rows);
    let widths =
        [n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim];
    let is_one = rows.row == 0 && rows.n_tokens as usize == *n_rows;
    let fits = [&q.w, &k.w, &v.w].map(|w| w.rows) == widths
        && [k.w.cols, v.w.cols] == [q.w.cols; 2]
        && [o.w.cols, o.w.rows] == [widths[0], q.w.cols];
    let is_turned = rope.table.is_some() && 2 * rope.n_pairs == shape.head_dim;
    let is_taken = attn::has_hopper_tiles(backend, ws, &shape, *softcap, *n_rows);
    Ok(is_one
        && fits
        && is_turned
        && is_taken
        && gemm::takes_heads(backend, ws, [q, k, v, o], *n_rows, shape.head_dim)?)
}
