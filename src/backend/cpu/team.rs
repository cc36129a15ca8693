//! The threads of a backend: entered once per step, handing over from op to op through atomics.
//!
//! A token has some 150 parallel regions of a few microseconds each, too short to wake threads for. So a step takes
//! the pool's threads once and keeps them; each op posts a job on a board, everybody claims items of it, and the
//! leader (the thread that runs the step) goes on when all items are done. Nobody waits for a thread that has not
//! claimed anything: one that the system has put aside delays nothing.
//!
//! The protocol has one rule: the fields of a job are read only after an item of it has been claimed. `remaining` is
//! set last when a job is posted, and a claim is a decrement of it that succeeds; the leader does not return before
//! every claimed item is done, so the job is alive for as long as any item of it is.
#![allow(unsafe_code, reason = "jobs borrow from the leader's stack; outputs are split between threads")]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

/// Rounds that an idle thread looks for work before it sleeps: some 50 microseconds.
const SPINS: u32 = 20_000;
/// Rounds between two offers to let another program run.
const SPINS_PER_YIELD: u32 = 2_000;

/// A backend's threads.
pub struct Team {
    /// One thread less than the team has: the leader brings its own.
    pool: Option<rayon::ThreadPool>,
    board: Arc<Board>,
    /// Steps exclude each other.
    step: Mutex<()>,
}

/// Where jobs are posted.
#[derive(Default)]
struct Board {
    /// Items of the current job that nobody has claimed.
    remaining: AtomicUsize,
    /// Items of the current job that are done.
    done: AtomicUsize,
    job: AtomicPtr<Job<'static>>,
    panicked: AtomicBool,
    /// The step is over.
    stop: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

struct Job<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    n_items: usize,
}

impl Team {
    /// # Errors
    /// `OutOfMemory` if the system gives no threads.
    pub fn new(n_threads: usize) -> Result<Self> {
        let pool = match n_threads {
            0 | 1 => None,
            n => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(n - 1)
                    .thread_name(|i| format!("longgen-{i}"))
                    .build()
                    .map_err(|error| {
                        Error::new(ErrorKind::OutOfMemory, format!("cannot start {n} threads: {error}"))
                    })?,
            ),
        };
        Ok(Self { pool, board: Arc::default(), step: Mutex::new(()) })
    }

    /// Runs `step` with all threads at hand; it reaches them through the crew.
    pub fn enter<T>(&self, cancel: &Cancel, step: impl FnOnce(Crew) -> Result<T>) -> Result<T> {
        let _one_step_at_a_time = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pool) = &self.pool else {
            return step(Crew { board: None, cancel: cancel.clone() });
        };
        let board = &self.board;
        board.stop.store(false, Ordering::SeqCst);
        board.panicked.store(false, Ordering::SeqCst);
        pool.in_place_scope(|scope| {
            let _stop = StopOnDrop(board);
            scope.spawn_broadcast(|_, _| board.work());
            step(Crew { board: Some(board.clone()), cancel: cancel.clone() })
        })
    }
}

/// Sends the threads home, also when a step panics.
struct StopOnDrop<'a>(&'a Board);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.wake_sleepers();
    }
}

impl Board {
    /// Claims an item of the current job: how many were left, this one included.
    fn claim(&self) -> Option<usize> {
        let mut remaining = self.remaining.load(Ordering::Relaxed);
        while remaining > 0 {
            match self.remaining.compare_exchange_weak(
                remaining,
                remaining - 1,
                // Acquire: the job's fields were written before `remaining`.
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(remaining),
                Err(now) => remaining = now,
            }
        }
        None
    }

    /// Claims and runs items until none are left.
    fn help(&self) {
        while let Some(left) = self.claim() {
            // SAFETY: an item of this job has been claimed and is not done, so the leader that owns it still waits.
            let job = unsafe { &*self.job.load(Ordering::Relaxed) };
            if catch_unwind(AssertUnwindSafe(|| (job.run)(job.n_items - left))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            // Release: what the item wrote is there for whoever sees it counted. The job is not touched after this.
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn work(&self) {
        loop {
            self.help();
            let mut spins = 0;
            while self.remaining.load(Ordering::Relaxed) == 0 {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                spins += 1;
                if spins >= SPINS {
                    self.sleep();
                    spins = 0;
                } else if spins % SPINS_PER_YIELD == 0 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn sleep(&self) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Sequentially consistent, like the poster's store and load: either it sees the sleeper or the sleeper the job.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.remaining.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }
}

/// The threads at hand in a step. Outside of one there is only the caller.
#[derive(Clone, Default)]
pub struct Crew {
    board: Option<Arc<Board>>,
    cancel: Cancel,
}

impl Crew {
    /// Runs all items, in any order, on all threads.
    ///
    /// # Errors
    /// `Cancelled`: items that had not begun are left out. `Internal`: an item panicked.
    pub fn for_each(&self, n_items: usize, run: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let unless_cancelled = |item| {
            if !self.cancel.is_cancelled() {
                run(item);
            }
        };
        match &self.board {
            Some(board) if n_items > 1 => {
                let job = Job { run: &unless_cancelled, n_items };
                board.done.store(0, Ordering::Relaxed);
                board.job.store(ptr::from_ref(&job).cast::<Job<'static>>().cast_mut(), Ordering::Relaxed);
                board.remaining.store(n_items, Ordering::SeqCst);
                board.wake_sleepers();
                board.help();
                let mut spins = 0u32;
                while board.done.load(Ordering::Acquire) < n_items {
                    spins += 1;
                    if spins.is_multiple_of(SPINS_PER_YIELD) {
                        std::thread::yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                }
                if board.panicked.load(Ordering::Relaxed) {
                    return Err(Error::new(
                        ErrorKind::Internal,
                        "an op panicked on one of the processor's threads",
                    ));
                }
            }
            _ => (0..n_items).for_each(unless_cancelled),
        }
        self.cancel.check()
    }

    /// `Ok` unless the step was cancelled.
    pub fn check(&self) -> Result<()> {
        self.cancel.check()
    }

    /// Runs `run` for every chunk of `out`; the last one may be shorter.
    ///
    /// # Errors
    /// Those of [`for_each`](Self::for_each).
    pub fn for_each_chunk<T: Send>(
        &self,
        out: &mut [T],
        chunk_len: usize,
        run: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<()> {
        let len = out.len();
        let memory = Memory(out.as_mut_ptr());
        self.for_each(len.div_ceil(chunk_len), &|i| {
            let begin = i * chunk_len;
            // SAFETY: chunks are disjoint parts of `out`, which is borrowed for the whole call, and each item runs once.
            let chunk = unsafe { memory.slice(begin, chunk_len.min(len - begin)) };
            run(i, chunk);
        })
    }

    /// Runs `run` for the chunks of two slices that belong together.
    ///
    /// # Errors
    /// Those of [`for_each`](Self::for_each).
    pub fn for_each_chunk_pair<T: Send, U: Send>(
        &self,
        a: &mut [T],
        a_len: usize,
        b: &mut [U],
        b_len: usize,
        run: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) -> Result<()> {
        let (a_all, b_all) = (a.len(), b.len());
        let n_items = a_all.div_ceil(a_len);
        assert_eq!(n_items, b_all.div_ceil(b_len), "chunks without partners");
        let (a, b) = (Memory(a.as_mut_ptr()), Memory(b.as_mut_ptr()));
        self.for_each(n_items, &|i| {
            let (a_begin, b_begin) = (i * a_len, i * b_len);
            // SAFETY: chunks are disjoint parts of slices that are borrowed for the whole call; each item runs once.
            let (a, b) = unsafe {
                (a.slice(a_begin, a_len.min(a_all - a_begin)), b.slice(b_begin, b_len.min(b_all - b_begin)))
            };
            run(i, a, b);
        })
    }

    /// Cuts every matrix into tiles of `tile_rows` by `tile_cols` and runs `run` for each: its matrix's number and the tile.
    ///
    /// # Errors
    /// Those of [`for_each`](Self::for_each).
    pub fn for_each_tile<const N: usize>(
        &self,
        matrices: [Option<Matrix<'_>>; N],
        tile_rows: usize,
        tile_cols: usize,
        run: impl Fn(usize, Tile<'_>) + Sync,
    ) -> Result<()> {
        let raw = matrices.map(|matrix| {
            matrix.map(|matrix| {
                assert!(matrix.out.len() >= matrix.n_rows * matrix.n_cols, "a matrix larger than its buffer");
                (Memory(matrix.out.as_mut_ptr()), matrix.n_rows, matrix.n_cols)
            })
        });
        let n_tiles = |i: usize| {
            raw[i]
                .as_ref()
                .map_or(0, |(_, n_rows, n_cols)| n_rows.div_ceil(tile_rows) * n_cols.div_ceil(tile_cols))
        };
        self.for_each((0..N).map(n_tiles).sum(), &|mut item| {
            let mut number = 0;
            while item >= n_tiles(number) {
                item -= n_tiles(number);
                number += 1;
            }
            if let Some((memory, n_rows, n_cols)) = &raw[number] {
                let across = n_cols.div_ceil(tile_cols);
                let (row, col) = (item / across * tile_rows, item % across * tile_cols);
                let rows = row..(row + tile_rows).min(*n_rows);
                run(
                    number,
                    Tile { memory, stride: *n_cols, rows, cols: col..(col + tile_cols).min(*n_cols) },
                );
            }
        })
    }
}

/// Memory that threads write to in disjoint places.
struct Memory<T>(*mut T);

// SAFETY: whoever writes through it promises disjoint places, see `slice`.
unsafe impl<T: Send> Sync for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Memory<T> {}

impl<T> Memory<T> {
    /// # Safety
    /// The elements are within the borrowed slice, and nobody else reads or writes them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "that is the point; see the obligations")]
    unsafe fn slice(&self, begin: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(begin), len) }
    }
}

/// A row-major output matrix.
pub struct Matrix<'a> {
    /// (n_rows, n_cols)
    pub out: &'a mut [f32],
    /// Rows.
    pub n_rows: usize,
    /// Columns.
    pub n_cols: usize,
}

/// Part of a matrix that one item has to itself.
pub struct Tile<'a> {
    memory: &'a Memory<f32>,
    stride: usize,
    /// Which rows.
    pub rows: Range<usize>,
    /// Which columns.
    pub cols: Range<usize>,
}

impl Tile<'_> {
    /// The tile's columns of a row, which is counted from the matrix's first.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row {row} is not within {:?}", self.rows);
        // SAFETY: the row is within the tile (checked) and so within the matrix, tiles of different items are disjoint,
        // and self is borrowed mutably for as long as the slice lives.
        unsafe { self.memory.slice(row * self.stride + self.cols.start, self.cols.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_and_writes_its_own_place() {
        for n_threads in [1, 2, 3, 8] {
            let team = Team::new(n_threads).unwrap();
            for round in 0..30 {
                team.enter(&Cancel::default(), |crew| {
                    for n in [0usize, 1, 2, 7, 100, 1000] {
                        let mut out = vec![0u32; n];
                        crew.for_each_chunk(&mut out, 3, |i, chunk| {
                            for (j, x) in chunk.iter_mut().enumerate() {
                                *x += u32::try_from(i * 3 + j).unwrap() + round;
                            }
                        })?;
                        assert!((round..).zip(&out).all(|(expected, &x)| x == expected));
                    }
                    Ok(())
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn tiles_of_several_matrices_are_disjoint_and_complete() {
        let team = Team::new(3).unwrap();
        let (mut a, mut b) = (vec![0.0; 5 * 7], vec![0.0; 5 * 10]);
        let matrices = [
            Some(Matrix { out: &mut a, n_rows: 5, n_cols: 7 }),
            None,
            Some(Matrix { out: &mut b, n_rows: 5, n_cols: 10 }),
        ];
        let fill = |number: usize, mut tile: Tile<'_>| {
            for row in tile.rows.clone() {
                tile.row_mut(row).iter_mut().for_each(|x| *x += (number + 1) as f32);
            }
        };
        team.enter(&Cancel::default(), |crew| crew.for_each_tile(matrices, 2, 3, fill)).unwrap();
        assert!(a.iter().all(|&x| x == 1.0) && b.iter().all(|&x| x == 3.0));
    }

    #[test]
    fn a_panic_of_an_item_is_an_error_and_the_team_works_on() {
        let team = Team::new(2).unwrap();
        for _ in 0..20 {
            let result = team
                .enter(&Cancel::default(), |crew| crew.for_each(50, &|i| assert!(i != 33, "meant to fail")));
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Internal);
            team.enter(&Cancel::default(), |crew| crew.for_each(50, &|_| {})).unwrap();
        }
    }

    #[test]
    fn a_cancel_leaves_out_what_has_not_begun() {
        let team = Team::new(2).unwrap();
        let (cancel, ran) = (Cancel::default(), AtomicUsize::new(0));
        let result = team.enter(&cancel, |crew| {
            crew.for_each(1_000_000, &|_| {
                if ran.fetch_add(1, Ordering::Relaxed) == 10 {
                    cancel.cancel();
                }
            })
        });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(ran.into_inner() < 1_000_000);
    }

    #[test]
    fn steps_of_several_threads_exclude_each_other() {
        let team = Team::new(2).unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        team.enter(&Cancel::default(), |crew| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            crew.for_each(20, &|_| {})?;
                            inside.fetch_sub(1, Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                    }
                });
            }
        });
    }
}
