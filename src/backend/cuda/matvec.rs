//! Products of matrices and a few rows: which kernel, and what of a multiprocessor's shared memory it takes.

use super::CudaBackend;
use super::matmul::{Output, Rows};
use super::params::{self, MAX_PRODUCTS, filled, word};
use super::weight::{Weight, kernel_name, type_name};
use super::workspace::Workspace;
use crate::backend::args::*;
use crate::error::{Error, ErrorKind, Result};

/// Rows of a matrix that one block of the kernel in f32 multiplies; rows of x that it multiplies with.
const ROWS: usize = 4;
const X_ROWS: [usize; 3] = [1, 4, 8];

/// Of the kernel for the tensor cores: rows of a matrix that a block multiplies at a time, rows of x that it multiplies with
/// at most, its warps that multiply, and bytes of a row of the matrix that one of them multiplies at a time.
const MMA_ROWS: usize = 16;
const MMA_X_ROWS: usize = 8;
const MMA_WARPS: usize = 8;
const MMA_ROW_BYTES: usize = 256;

/// Stages of a warp: at least two, one more where that leaves room for another block on the multiprocessor.
const MMA_STAGES: usize = 2;

/// Shared memory of a block beside what the host sets aside; and what the device takes for itself of every block's.
const MMA_STATIC_BYTES: usize = 512;
const RESERVED_BYTES: usize = 1024;

/// Whether a few rows are multiplied with the matrix on the tensor cores.
pub(super) fn takes_mma(ws: &Workspace, w: &Weight) -> bool {
    ws.precision == Precision::Fast && w.fits_mma
}

/// Products of matrices of one type, at most [`MAX_PRODUCTS`], with a few rows.
pub(super) fn few_rows(
    backend: &CudaBackend,
    ws: &Workspace,
    parts: &mut [&mut MatmulPart<'_, CudaBackend>],
    rows: Rows,
    n_rows: usize,
    output: Output,
) -> Result<()> {
    let device = &backend.device;
    let (ty, cols, name) = (parts[0].w.ty, parts[0].w.cols, type_name(parts[0].w)?);
    let is_mma = parts.iter().all(|part| takes_mma(ws, part.w));
    let is_glu = output == Output::Glu;
    if is_glu && !is_mma {
        return Err(Error::new(ErrorKind::Internal, "a gated unit that the tensor cores cannot take"));
    }
    let tile_rows = if is_mma { MMA_ROWS } else { ROWS };
    // Gates and what they let through share a tile.
    let tile_rows = if is_glu { tile_rows / 2 } else { tile_rows };
    let mut n_tiles = 0;
    let mut of_part = |part: &mut &mut MatmulPart<'_, CudaBackend>| {
        let first_tile = word(n_tiles);
        n_tiles += part.w.rows.div_ceil(tile_rows);
        Ok(params::MatvecPart {
            out: part.out.f32s(n_rows * part.w.rows)?,
            w: part.w.params(),
            bias: part.bias.map_or(Ok(0), |bias| bias.f32s(part.w.rows))?,
            first_tile,
            unused: 0,
        })
    };
    let described: [_; MAX_PRODUCTS] =
        filled(&parts.iter_mut().map(&mut of_part).collect::<Result<Vec<_>>>()?);
    let n_tiles = if is_glu { n_tiles / 2 } else { n_tiles };
    let (norm, eps) = rows.norm.unwrap_or((0, 0.0));
    let mut params = params::Matvec {
        parts: described,
        x: rows.x,
        norm,
        eps,
        n_parts: word(parts.len()),
        n_rows: word(n_rows),
        add: u32::from(output == Output::Add),
        is_glu: u32::from(is_glu),
        n_tiles: word(n_tiles),
        n_stages: 0,
        x_rows: 0,
    };
    if is_mma {
        let max_bytes = backend.limits.shared_bytes as usize - MMA_STATIC_BYTES;
        let Staging { x_rows, keeps_x, n_stages, shared_bytes } =
            staging(ty, cols, n_rows, max_bytes, backend.limits.keeps_x).ok_or_else(|| {
                Error::unsupported(format!(
                    "{ty} matrices of {cols} columns with {max_bytes} bytes of shared memory"
                ))
            })?;
        params.n_stages = word(n_stages);
        params.x_rows = word(x_rows);
        let kernel = match (x_rows, keeps_x) {
            (1, true) => format!("matvec_mma1_{name}"),
            (_, true) => format!("matvec_mma8_{name}"),
            (_, false) => format!("matvec_mma8_restaging_{name}"),
        };
        // One warp more adds up what the others have.
        let (n_threads, shared_bytes) = (32 * word(MMA_WARPS + 1), word(shared_bytes));
        let n_blocks = device.blocks_at_once(&kernel, n_threads, shared_bytes)?.min(backend.limits.blocks);
        let x_tiles = n_rows.div_ceil(x_rows);
        let grid = [n_tiles.min((n_blocks / x_tiles).max(1)), x_tiles, 1];
        return device.launch(&kernel, grid, n_threads, shared_bytes, &params);
    }
    let largest = X_ROWS[X_ROWS.len() - 1];
    let at_once = X_ROWS.into_iter().find(|&n| n >= n_rows).unwrap_or(largest);
    let grid = [n_tiles, n_rows.div_ceil(at_once), 1];
    device.launch(&format!("matvec{at_once}_{name}"), grid, 32 * word(ROWS), 0, &params)
}

/// How the kernel for the tensor cores goes about a product.
#[derive(Debug)]
struct Staging {
    /// Rows of x that a block multiplies with
    x_rows: usize,
    /// Whether it keeps all of them, or stages what it needs of them again and again
    keeps_x: bool,
    /// Stages of a warp
    n_stages: usize,
    shared_bytes: usize,
}

/// As many rows of x at once as there is room for, if they can be kept: what is read twice by blocks side by side comes from
/// the cache.
fn staging(
    ty: TensorType,
    cols: usize,
    n_rows: usize,
    max_bytes: usize,
    may_keep_x: bool,
) -> Option<Staging> {
    // Blocks of a row that a warp multiplies at a time.
    let (_, block_scale_bytes) = kernel_name(ty)?;
    let n_blocks = MMA_ROW_BYTES / (ty.block_bytes() - block_scale_bytes);
    let (stretch_cols, scale_bytes) = (n_blocks * ty.block_elems(), n_blocks * block_scale_bytes);
    let stage_bytes = MMA_WARPS * MMA_ROWS * (MMA_ROW_BYTES + scale_bytes);
    let with = |x_rows: usize, keeps_x: bool| {
        let n_held = if keeps_x { cols.div_ceil(stretch_cols).div_ceil(MMA_WARPS) } else { 1 };
        // The sums of two tiles, and rows in 16 bits.
        let sums_bytes = 2 * MMA_WARPS * MMA_ROWS * x_rows * size_of::<f32>();
        let beside = sums_bytes + MMA_WARPS * n_held * x_rows * stretch_cols * 2;
        let bytes = |n_stages: usize| beside + n_stages * stage_bytes;
        let is_roomy = 2 * (bytes(MMA_STAGES + 1) + RESERVED_BYTES) <= max_bytes;
        let n_stages = if is_roomy { MMA_STAGES + 1 } else { MMA_STAGES };
        let shared_bytes = bytes(n_stages);
        (shared_bytes <= max_bytes).then_some(Staging { x_rows, keeps_x, n_stages, shared_bytes })
    };
    let x_rows = || [MMA_X_ROWS, 4, 2, 1].into_iter().map(|most| most.min(n_rows));
    let kept = x_rows().filter(|_| may_keep_x).find_map(|x_rows| with(x_rows, true));
    kept.or_else(|| x_rows().find_map(|x_rows| with(x_rows, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [TensorType; 5] =
        [TensorType::F16, TensorType::BF16, TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1];
    const LEAST: usize = 99 * 1024 - MMA_STATIC_BYTES;
    const HOPPER: usize = 227 * 1024 - MMA_STATIC_BYTES;

    #[test]
    fn every_matrix_finds_room_on_every_card() {
        for ty in TYPES {
            for cols in [64, 576, 4096, 11008, 14336, 28672, 65536] {
                for n_rows in 1..=16 {
                    for (max_bytes, may_keep_x) in [(LEAST, false), (LEAST, true), (HOPPER, true)] {
                        let staging =
                            staging(ty, cols, n_rows, max_bytes, may_keep_x).expect("there is room");
                        assert!((1..=n_rows.min(8)).contains(&staging.x_rows));
                        assert!(staging.shared_bytes <= max_bytes);
                        assert!(may_keep_x || !staging.keeps_x);
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_kept_and_leaves_room_for_another_block() {
        for ty in TYPES {
            let of_model = staging(ty, 4096, 1, HOPPER, true).expect("there is room");
            assert!(
                of_model.keeps_x && 2 * (of_model.shared_bytes + RESERVED_BYTES) <= HOPPER,
                "{ty}: {of_model:?}"
            );
            let of_mlp = staging(ty, 11008, 8, HOPPER, true).expect("there is room");
            assert!(of_mlp.keeps_x && of_mlp.x_rows == 4, "{ty}: {of_mlp:?}");
        }
    }
}
