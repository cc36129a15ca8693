//! What `kernels/sm90/ptx.cuh` says of its wrappers, each in a kernel of `kernels/sm90/ptx_test.cu`. Numbers are whole and
//! small, so that every type has them and their sums: what comes out is known to the bit.

use std::io::Write as _;
use std::sync::Arc;

use half::{bf16, f16};

use super::device::{Device, DeviceBuf, Matrix16};
use super::params::{Address, Params, TensorMap, word};

/// As `ptx_test.cu` has it. Each kernel takes what it needs of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PtxTest {
    maps: [TensorMap; 2],
    out: Address,
    a: Address,
    b: Address,
    column: u32,
    row: u32,
    n: u32,
    add: u32,
}
const _: () = assert!(size_of::<PtxTest>() == 384);
// SAFETY: the fields are those of ptx_test.cu, where the size is asserted, too.
unsafe impl Params for PtxTest {}

/// Elements of a row of shared memory, and of what moves in one piece there.
const ROW: usize = 64;
const CHUNK: usize = 8;

/// What aligning shared memory takes.
const ALIGNING: usize = 1024;

/// Runs one test's kernels.
struct Rig {
    device: Arc<Device>,
    /// Of the next random number.
    state: u64,
}

impl Rig {
    /// On the first device, or nothing, said loudly, where it is none for these kernels.
    fn new() -> Option<Self> {
        let why = match Device::open(0) {
            Ok(device) if device.is_hopper => return Some(Self { device, state: 1 }),
            Ok(device) => format!("{} is another card", device.name),
            Err(error) => error.to_string(),
        };
        // Past the test harness, which would swallow it.
        let message = format!("SKIPPED on Hopper's cards: {why}\n");
        std::io::stderr().write_all(message.as_bytes()).unwrap();
        None
    }

    /// Random bits.
    fn bits(&mut self) -> u32 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word((self.state >> 33) as usize)
    }

    fn words(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.bits()).collect()
    }

    /// Elements of 16 bits of any kind.
    fn halves(&mut self, n: usize) -> Vec<u16> {
        bytemuck::cast_slice(&self.words(n / 2)).to_vec()
    }

    /// Whole numbers from -8 to 8.
    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.bits() % 17) as f32 - 8.0).collect()
    }

    fn buf<T: bytemuck::NoUninit>(&self, values: &[T]) -> DeviceBuf {
        let mut buf = self.device.alloc(size_of_val(values)).unwrap();
        buf.upload(0, bytemuck::cast_slice(values)).unwrap();
        buf
    }

    /// Launches the kernel, and waits for it; its first buffer is returned as it is then.
    fn run<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        kernel: &str,
        [n_blocks, n_threads, shared_bytes]: [usize; 3],
        out: &DeviceBuf,
        params: PtxTest,
    ) -> Vec<T> {
        let (kernel, params) = (format!("ptx_test_{kernel}"), PtxTest { out: out.address(), ..params });
        self.device.bind().unwrap();
        let (n_threads, shared_bytes) = (word(n_threads), word(shared_bytes));
        self.device.launch(&kernel, [n_blocks, 1, 1], n_threads, shared_bytes, &params).unwrap();
        let mut values = vec![T::zeroed(); out.n_bytes() / size_of::<T>()];
        out.download(bytemuck::cast_slice_mut(&mut values), 0).unwrap();
        values
    }
}

/// A matrix of 16-bit elements, and boxes of it.
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<u16>,
}

impl Matrix {
    fn random(rig: &mut Rig, rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: rig.halves(rows * cols) }
    }

    fn map(&self, rig: &Rig, buf: &DeviceBuf, box_rows: usize, is_bf16: bool) -> TensorMap {
        let Self { rows, cols, .. } = *self;
        let matrix = Matrix16 { address: buf.address(), rows, cols, is_bf16 };
        rig.device.tensor_map(&matrix, word(box_rows)).unwrap()
    }

    /// Rows of 64 elements from (column, row) on; zeros where there is nothing.
    fn rows_of_box(&self, column: usize, row: usize, n_rows: usize) -> Vec<u16> {
        let at = |i: usize| (row + i / ROW, column + i % ROW);
        let is_there = |&(row, column): &(usize, usize)| row < self.rows && column < self.cols;
        let value =
            |i| Some(at(i)).filter(is_there).map_or(0, |(row, column)| self.values[row * self.cols + column]);
        (0..n_rows * ROW).map(value).collect()
    }
}

#[test]
fn boxes_come_swizzled_with_zeros_where_a_matrix_ends() {
    let Some(mut rig) = Rig::new() else { return };
    let matrix = Matrix::random(&mut rig, 150, 144);
    let buf = rig.buf(&matrix.values);
    for (n_rows, is_bf16) in [(8, false), (64, true), (64, false), (128, true), (256, false)] {
        for (column, row) in [(0, 0), (64, 0), (8, 3), (0, 64), (64, 37), (128, 100), (192, 0), (0, 150)] {
            let map = matrix.map(&rig, &buf, n_rows, is_bf16);
            let out = rig.device.alloc(2 * n_rows * ROW * 2).unwrap();
            let params = PtxTest {
                maps: [map; 2],
                column: word(column),
                row: word(row),
                n: word(n_rows),
                ..Default::default()
            };
            let has: Vec<u16> = rig.run("box", [1, 128, n_rows * ROW * 2 + ALIGNING], &out, params);
            let expected = matrix.rows_of_box(column, row, n_rows);
            let (as_it_lies, in_order) = has.split_at(n_rows * ROW);
            let what = format!("{n_rows} rows at ({column}, {row})");
            assert!(in_order == expected, "{what}, in order");
            for (i, chunk) in expected.chunks(CHUNK).enumerate() {
                let (row, chunk_of_row) = (i / (ROW / CHUNK), i % (ROW / CHUNK));
                let at = row * ROW + (chunk_of_row ^ (row % 8)) * CHUNK;
                assert!(as_it_lies[at..at + CHUNK] == *chunk, "{what}: chunk {chunk_of_row} of row {row}");
            }
        }
    }
}

#[test]
fn boxes_go_to_the_blocks_of_a_cluster_that_are_named() {
    let Some(mut rig) = Rig::new() else { return };
    let matrices = [Matrix::random(&mut rig, 300, 200), Matrix::random(&mut rig, 300, 200)];
    let bufs = matrices.each_ref().map(|matrix| rig.buf(&matrix.values));
    let maps = [0, 1].map(|i| matrices[i].map(&rig, &bufs[i], 64, i == 0));
    for (column, row) in [(0, 0), (64, 100), (160, 200)] {
        let out = rig.device.alloc(2 * 3 * 64 * ROW * 2).unwrap();
        let params = PtxTest { maps, column: word(column), row: word(row), ..Default::default() };
        let has: Vec<u16> = rig.run("multicast", [2, 128, 3 * 64 * ROW * 2 + ALIGNING], &out, params);
        for (rank, has) in has.chunks(3 * 64 * ROW).enumerate() {
            let boxes = [(0, row), (0, row + 64), (1, row + 64 * (1 - rank))];
            for (i, (has, (matrix, row))) in has.chunks(64 * ROW).zip(boxes).enumerate() {
                let expected = matrices[matrix].rows_of_box(column, row, 64);
                assert!(has == expected, "box {i} of block {rank} at ({column}, {row})");
            }
        }
    }
}

#[test]
fn bytes_that_lie_together_are_copied_and_no_others() {
    const LANE_WORDS: usize = 33 * 4;
    let Some(mut rig) = Rig::new() else { return };
    let values = rig.words(32 * LANE_WORDS);
    let (a, out) = (rig.buf(&values), rig.device.alloc(32 * LANE_WORDS * 4).unwrap());
    let has: Vec<u32> = rig.run("bytes", [1, 32, 0], &out, PtxTest { a: a.address(), ..Default::default() });
    for (i, (&has, &value)) in has.iter().zip(&values).enumerate() {
        let (lane, at) = (i / LANE_WORDS, i % LANE_WORDS);
        assert_eq!(has, if at < 4 * (lane + 1) { value } else { u32::MAX }, "word {at} of lane {lane}");
    }
}

#[test]
fn words_are_sent_round_a_cluster_in_order() {
    const N: usize = 101;
    let Some(mut rig) = Rig::new() else { return };
    let values = rig.words(4 * N);
    let (a, out) = (rig.buf(&values), rig.device.alloc(4 * N * 4).unwrap());
    let params = PtxTest { a: a.address(), n: word(N), ..Default::default() };
    let has: Vec<u32> = rig.run("cluster", [4, 32, 0], &out, params);
    for (rank, has) in has.chunks(N).enumerate() {
        assert!(*has == values[(rank + 3) % 4 * N..][..N], "what block {rank} received");
    }
}

#[test]
fn a_phase_ends_with_the_last_arrival_of_a_cluster() {
    const N: usize = 50;
    let Some(rig) = Rig::new() else { return };
    let out = rig.buf(&[0u32; 1 + 4 * N]);
    let has: Vec<u32> = rig.run("arrivals", [4, 32, 0], &out, PtxTest { n: word(N), ..Default::default() });
    assert_eq!(has[0], word(4 * N));
    for (round, seen) in has[1..].chunks(4).enumerate() {
        assert_eq!(seen, [word(4 * (round + 1)); 4], "round {round}");
    }
}

#[test]
fn shared_memory_is_stored_and_loaded_in_all_sizes() {
    let Some(mut rig) = Rig::new() else { return };
    let (words, numbers) = (rig.words(512), rig.numbers(128));
    let (a, b, out) = (rig.buf(&words), rig.buf(&numbers), rig.device.alloc(640 * 4).unwrap());
    let params = PtxTest { a: a.address(), b: b.address(), ..Default::default() };
    let has: Vec<u32> = rig.run("shared", [1, 128, 0], &out, params);
    assert!(has[..512] == words, "words");
    let reversed: Vec<_> = numbers.iter().rev().map(|x| x.to_bits()).collect();
    assert!(has[512..] == reversed, "halves");
}

#[test]
fn floats_in_memory_are_added_to_four_at_a_time() {
    const BLOCKS: usize = 20;
    let Some(mut rig) = Rig::new() else { return };
    for n in [1, 3, 128] {
        let (before, added) = (rig.numbers(4 * n), rig.numbers(BLOCKS * 128 * 4));
        let mut expected = before.clone();
        for (thread, added) in added.chunks(4).enumerate() {
            let to = &mut expected[thread % 128 % n * 4..][..4];
            to.iter_mut().zip(added).for_each(|(to, x)| *to += x);
        }
        let (a, out) = (rig.buf(&added), rig.buf(&before));
        let params = PtxTest { a: a.address(), n: word(n), ..Default::default() };
        let has: Vec<f32> = rig.run("add", [BLOCKS, 128, 0], &out, params);
        assert_eq!(has, expected, "{n} times four");
    }
}

#[test]
fn stages_are_passed_on_between_warpgroups() {
    let Some(mut rig) = Rig::new() else { return };
    for n in [1, 4, 5, 103] {
        let values = rig.words(n * 256);
        let (a, out) = (rig.buf(&values), rig.device.alloc(3 * 128 * 4).unwrap());
        let params = PtxTest { a: a.address(), n: word(n), ..Default::default() };
        let has: Vec<u32> = rig.run("stages", [1, 384, 0], &out, params);
        let sum = |i: usize| values.iter().skip(i).step_by(256).fold(0u32, |sum, &x| sum.wrapping_add(x));
        let sums: Vec<_> = (0..256).map(sum).collect();
        assert!(has[..256] == sums, "sums of {n} stages");
        assert!(has[256..].iter().eq(sums[..128].iter().rev()), "what the second group saw of {n} stages");
    }
}

/// (64, n): `before`, plus the sum over k of a (64, 128) times what `b` says of (k, column).
fn products(n: usize, before: Option<&[f32]>, a: &[f32], b: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let sum = |i: usize| {
        let terms = a[i / n * 128..][..128].iter().enumerate().map(|(k, a)| a * b(k, i % n));
        before.map_or(0.0, |before| before[i]) + terms.sum::<f32>()
    };
    (0..64 * n).map(sum).collect()
}

/// Tries a kernel of (64, n) products with operands of either type, `b` with rows along k or along the outputs.
fn check_products(kernel: &str, n: usize, b_is_along_k: bool, adds: &[bool]) {
    let Some(mut rig) = Rig::new() else { return };
    for (ty, is_bf16) in [("f16", false), ("bf16", true)] {
        for &add in adds {
            let [a, b, before] = [64 * 128, n * 128, 64 * n].map(|n| rig.numbers(n));
            let rounded =
                |x: &f32| if is_bf16 { bf16::from_f32(*x).to_bits() } else { f16::from_f32(*x).to_bits() };
            let [a_buf, b_buf] =
                [&a, &b].map(|values| rig.buf(&values.iter().map(rounded).collect::<Vec<_>>()));
            let out = rig.buf(&before);
            let params =
                PtxTest { a: a_buf.address(), b: b_buf.address(), add: add.into(), ..Default::default() };
            let shared_bytes = (64 + n) * 128 * 2 + ALIGNING;
            let has: Vec<f32> = rig.run(&format!("{kernel}_{n}_{ty}"), [1, 128, shared_bytes], &out, params);
            let of_b =
                |k: usize, column: usize| if b_is_along_k { b[column * 128 + k] } else { b[k * n + column] };
            let expected = products(n, add.then_some(&before[..]), &a, of_b);
            let wrong = has.iter().zip(&expected).position(|(has, expected)| has != expected);
            if let Some(i) = wrong {
                let (row, column) = (i / n, i % n);
                panic!("{kernel} {n} {ty}, add {add}: ({row}, {column}) is {}, not {}", has[i], expected[i]);
            }
        }
    }
}

#[test]
fn products_of_shared_memory_have_256_or_128_columns() {
    check_products("outputs", 256, true, &[false, true]);
    check_products("scores", 128, true, &[false, true]);
}

#[test]
fn products_of_registers_have_128_or_64_columns() {
    check_products("weigh", 128, false, &[true]);
    check_products("weigh", 64, false, &[true]);
}
