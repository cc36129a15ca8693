//! The threads of a backend, and how an op hands parts of its work to them.
//!
//! The thread that runs a step (the leader) publishes one job after the other; workers that find items left take them,
//! the leader takes items too and goes on when all are done. A job never waits for a worker that has taken nothing from
//! it, so a thread that the operating system has put aside costs its own share of the work and nothing more.
#![allow(unsafe_code, reason = "lends stack data and disjoint parts of slices to other threads")]

use std::hint::spin_loop;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::alloc::try_with_capacity;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

/// Stack of a worker, which holds a job's locals.
const STACK_BYTES: usize = 2 << 20;

/// How long a worker without work looks for more before it sleeps: longer than the leader needs between two jobs.
const SPIN: Duration = Duration::from_micros(60);
/// Most threads: far more than help, and few enough for any system to start.
const MAX_THREADS: usize = 4096;

/// What threads do in one op: `item(thread, i)` for every i below `n_items`, in any order.
struct Job<'a> {
    item: &'a (dyn Fn(usize, usize) + Sync),
    n_items: usize,
    cancel: Option<&'a Cancel>,
    panicked: AtomicBool,
}

impl Job<'_> {
    /// Does an item, or skips it if there is no point any more.
    fn run(&self, thread: usize, i: usize) {
        if self.panicked.load(Ordering::Relaxed) || self.cancel.is_some_and(Cancel::is_cancelled) {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| (self.item)(thread, i))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    fn result(&self) -> Result<()> {
        if self.panicked.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Internal, "a thread of the cpu backend panicked"));
        }
        self.cancel.map_or(Ok(()), Cancel::check)
    }
}

/// Where the leader publishes a job, on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Board {
    /// Items that nobody has taken; from the last to the first, so that those that tend to be long come early.
    remaining: AtomicUsize,
    done: AtomicUsize,
    /// Valid whenever an item has been taken and is not done yet.
    job: AtomicPtr<Job<'static>>,
    /// The team is no more.
    stop: AtomicBool,
    n_sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Board {
    /// Takes an item of the current job and does it; false if none is left.
    fn work(&self, thread: usize) -> bool {
        let mut remaining = self.remaining.load(Ordering::Relaxed);
        loop {
            if remaining == 0 {
                return false;
            }
            let claim = self.remaining.compare_exchange_weak(
                remaining,
                remaining - 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match claim {
                Ok(_) => break,
                Err(now) => remaining = now,
            }
        }
        let job = self.job.load(Ordering::Relaxed);
        // SAFETY: the claim, which acquired what the leader released with the count, is for the job that was published
        // with it, and the leader keeps a job alive until all its items are done: not before `done` is counted below.
        unsafe { (*job).run(thread, remaining - 1) };
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// What a worker does as long as there is a team.
    fn serve(&self, thread: usize) {
        let mut idle_since = None;
        loop {
            if self.work(thread) {
                idle_since = None;
            } else if self.stop.load(Ordering::Acquire) {
                return;
            } else if idle_since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                spin_loop();
            } else {
                self.sleep();
                idle_since = None;
            }
        }
    }

    /// Sleeps until there is work. `n_sleepers` is counted up before the last look at `remaining`, and the leader looks
    /// at it after it has published: one of the two sees the other.
    fn sleep(&self) {
        let mut guard = lock(&self.sleep);
        self.n_sleepers.fetch_add(1, Ordering::SeqCst);
        while self.remaining.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.n_sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.n_sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.sleep);
            self.wake.notify_all();
        }
    }

    /// Has a job done by everybody who is there; returns when it is.
    fn lead(&self, job: &Job<'_>) {
        self.done.store(0, Ordering::Relaxed);
        self.job.store(ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        self.remaining.store(job.n_items, Ordering::SeqCst);
        self.wake_sleepers();
        while self.work(0) {}
        let mut spins = 0u32;
        while self.done.load(Ordering::Acquire) < job.n_items {
            spins += 1;
            // Somebody may have been put aside in the middle of an item.
            if spins.is_multiple_of(1024) { thread::yield_now() } else { spin_loop() }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is guarded here can be left half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads of a backend: the one that calls, and workers.
pub(super) struct Team {
    workers: Vec<JoinHandle<()>>,
    n_threads: usize,
    step: Mutex<()>,
    /// The thread that runs the step and has no job on the board: see [`this_thread`].
    leader: AtomicUsize,
    board: Arc<Board>,
}

impl Team {
    /// A team of `n_threads`, of which the caller of each step is one.
    ///
    /// # Errors
    /// `Invalid` for no threads or more than 4,096, `OutOfMemory` if the system has no more threads.
    pub fn new(n_threads: usize) -> Result<Self> {
        if !(1..=MAX_THREADS).contains(&n_threads) {
            return Err(Error::invalid(format!("{n_threads} threads: 1 to {MAX_THREADS} work")));
        }
        let mut team = Self {
            workers: try_with_capacity(n_threads - 1)?,
            n_threads,
            step: Mutex::new(()),
            leader: AtomicUsize::new(NO_THREAD),
            board: Arc::default(),
        };
        for i in 1..n_threads {
            let board = team.board.clone();
            // Without a size, the standard library would look for one in the environment.
            let builder = thread::Builder::new().name(format!("longgen-{i}")).stack_size(STACK_BYTES);
            let worker = builder.spawn(move || board.serve(i)).map_err(|error| {
                let message = format!("cannot start {} threads: {error}", n_threads - 1);
                Error::new(ErrorKind::OutOfMemory, message)
            })?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Runs `step` with the threads at hand. Steps exclude each other.
    pub fn run<T>(&self, step: impl FnOnce() -> T) -> T {
        let _alone = lock(&self.step);
        if self.workers.is_empty() {
            return step();
        }
        self.leader.store(this_thread(), Ordering::Relaxed);
        let _end = EndOfStep(&self.leader);
        step()
    }

    /// The threads that an op on this thread may use: all of them within [`run`](Self::run), itself otherwise.
    pub fn crew<'a>(&'a self, cancel: Option<&'a Cancel>) -> Crew<'a> {
        Crew { team: self, cancel }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        self.board.wake_sleepers();
        for worker in self.workers.drain(..) {
            // What panics in a job is caught there.
            let _ = worker.join();
        }
    }
}

/// Nobody leads behind a step, also when it panics.
struct EndOfStep<'a>(&'a AtomicUsize);

impl Drop for EndOfStep<'_> {
    fn drop(&mut self) {
        self.0.store(NO_THREAD, Ordering::Relaxed);
    }
}

/// What no thread is called.
const NO_THREAD: usize = 0;

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| ptr::from_ref(mark).addr())
}

/// The threads that an op may use, and the flag that stops it.
#[derive(Clone, Copy)]
pub(super) struct Crew<'a> {
    team: &'a Team,
    cancel: Option<&'a Cancel>,
}

impl Crew<'_> {
    /// Threads at most.
    pub fn n_threads(&self) -> usize {
        self.team.n_threads
    }

    /// Calls `item(thread, i)` for every i below `n_items`; no two calls at once have the same `thread`, which is below
    /// [`n_threads`](Self::n_threads).
    ///
    /// # Errors
    /// `Cancelled`, and `Internal` if an item panicked; some items have not run then.
    pub fn for_each(&self, n_items: usize, item: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        let job = Job { item, n_items, cancel: self.cancel, panicked: AtomicBool::new(false) };
        let board = &self.team.board;
        // While a job is on the board nobody leads, so that an item that hands over work of its own does it alone.
        let leader = &self.team.leader;
        let leads = n_items > 1 && {
            let me = this_thread();
            leader.compare_exchange(me, NO_THREAD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if leads {
            board.lead(&job);
            leader.store(this_thread(), Ordering::Relaxed);
        } else {
            (0..n_items).for_each(|i| job.run(0, i));
        }
        job.result()
    }

    /// Calls `item(scratch, i, chunk)` for every chunk of `chunk_len` elements of `out`, the last one perhaps shorter.
    /// `scratch` is divided among the threads.
    ///
    /// # Errors
    /// Those of [`for_each`](Self::for_each).
    pub fn for_each_chunk<T: Send>(
        &self,
        out: &mut [T],
        chunk_len: usize,
        scratch: &mut [f32],
        item: impl Fn(&mut [f32], usize, &mut [T]) + Sync,
    ) -> Result<()> {
        let (n, chunk_len) = (out.len(), chunk_len.max(1));
        let (out, scratch) = (Shared::new(out), Scratch::new(scratch, self.n_threads()));
        self.for_each(n.div_ceil(chunk_len), &|thread, i| {
            // SAFETY: no two items at once run on the same thread.
            let scratch = unsafe { scratch.of(thread) };
            // SAFETY: chunks of different items are disjoint.
            item(scratch, i, unsafe { out.part(i * chunk_len..n.min((i + 1) * chunk_len)) });
        })
    }

    /// Calls `item(scratch, g, tile)` for every tile of every grid, where g is the grid's number. `scratch` is divided
    /// among the threads.
    ///
    /// # Errors
    /// Those of [`for_each`](Self::for_each).
    pub fn for_each_tile(
        &self,
        grids: &mut [Grid<'_>],
        scratch: &mut [f32],
        item: impl Fn(&mut [f32], usize, Tile<'_>) + Sync,
    ) -> Result<()> {
        let scratch = Scratch::new(scratch, self.n_threads());
        let grids = &*grids;
        self.for_each(grids.iter().map(Grid::n_tiles).sum(), &|thread, mut i| {
            let mut g = 0;
            while i >= grids[g].n_tiles() {
                i -= grids[g].n_tiles();
                g += 1;
            }
            // SAFETY: no two items at once run on the same thread.
            let scratch = unsafe { scratch.of(thread) };
            // SAFETY: the grids are borrowed mutably by this function, and each of their tiles belongs to one item.
            item(scratch, g, unsafe { grids[g].tile(i) });
        })
    }
}

/// A slice whose parts several threads write.
struct Shared<'a, T> {
    first: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a Shared only hands out what its `part` was asked for, and whoever asks answers for disjointness; sending a
// part to another thread sends elements.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(slice: &'a mut [T]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    /// Parts that live at the same time are disjoint.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for disjointness")]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies within the slice, and no other living reference does by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

/// Working memory of each thread.
struct Scratch<'a> {
    all: Shared<'a, f32>,
    per_thread: usize,
}

impl<'a> Scratch<'a> {
    fn new(all: &'a mut [f32], n_threads: usize) -> Self {
        Self { per_thread: all.len() / n_threads, all: Shared::new(all) }
    }

    /// # Safety
    /// One call at a time for each thread.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for disjointness")]
    unsafe fn of(&self, thread: usize) -> &mut [f32] {
        // SAFETY: the parts of different threads are disjoint.
        unsafe { self.all.part(thread * self.per_thread..(thread + 1) * self.per_thread) }
    }
}

/// A matrix in rows of memory, cut into tiles that are written in parallel.
pub(super) struct Grid<'a> {
    out: Shared<'a, f32>,
    shape: [usize; 2],
    tile_shape: [usize; 2],
}

impl<'a> Grid<'a> {
    /// The (n_rows, n_cols) matrix `out` in tiles of at most `tile_shape`. Panics if `out` is shorter.
    pub fn new(out: &'a mut [f32], shape: [usize; 2], tile_shape: [usize; 2]) -> Self {
        let out = &mut out[..shape[0] * shape[1]];
        Self { out: Shared::new(out), shape, tile_shape: tile_shape.map(|n| n.max(1)) }
    }

    fn n_tiles(&self) -> usize {
        self.shape[0].div_ceil(self.tile_shape[0]) * self.shape[1].div_ceil(self.tile_shape[1])
    }

    /// # Safety
    /// Each tile lives once at a time, and nobody else uses the matrix meanwhile.
    unsafe fn tile(&self, i: usize) -> Tile<'_> {
        let tiles_a_row = self.shape[1].div_ceil(self.tile_shape[1]);
        let part = |axis: usize, i: usize| {
            let first = i * self.tile_shape[axis];
            first..self.shape[axis].min(first + self.tile_shape[axis])
        };
        Tile { grid: self, rows: part(0, i / tiles_a_row), cols: part(1, i % tiles_a_row) }
    }
}

/// Some rows and columns of a [`Grid`].
pub(super) struct Tile<'a> {
    grid: &'a Grid<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Tile<'_> {
    /// Rows of the matrix that this tile has.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns of the matrix that this tile has.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The tile's part of a row of the matrix, of those in `rows`.
    #[inline]
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row));
        let start = row * self.grid.shape[1];
        // SAFETY: the part lies in this tile, which is borrowed mutably, and no other tile has it.
        unsafe { self.grid.out.part(start + self.cols.start..start + self.cols.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_item_is_done_once_in_any_number_of_jobs() {
        for n_threads in [1, 2, 3, 5] {
            let team = Team::new(n_threads).unwrap();
            let never = Cancel::default();
            for step in 0..20 {
                team.run(|| {
                    for job in 0..200 {
                        let mut counts = vec![0u32; (step * 7 + job * 3) % 41];
                        let chunk = 1 + job % 3;
                        let touch = |_: &mut [f32], i: usize, part: &mut [u32]| {
                            part.iter_mut()
                                .enumerate()
                                .for_each(|(j, x)| *x += u32::try_from(i * chunk + j).unwrap() + 1);
                        };
                        team.crew(Some(&never)).for_each_chunk(&mut counts, chunk, &mut [], touch).unwrap();
                        assert!(counts.iter().zip(1..).all(|(&count, expected)| count == expected));
                    }
                });
            }
        }
    }

    #[test]
    fn a_tile_is_a_part_of_the_matrix() {
        let team = Team::new(2).unwrap();
        let (mut a, mut b) = (vec![0.0; 7 * 5], vec![0.0; 3 * 11]);
        let grids = &mut [Grid::new(&mut a, [7, 5], [2, 3]), Grid::new(&mut b, [3, 11], [5, 2])];
        let fill = |_: &mut [f32], g: usize, mut tile: Tile<'_>| {
            for row in tile.rows() {
                let first = tile.cols().start;
                for (i, x) in tile.row_mut(row).iter_mut().enumerate() {
                    *x += (g * 1000 + row * 100 + first + i) as f32;
                }
            }
        };
        team.run(|| team.crew(None).for_each_tile(grids, &mut [], fill)).unwrap();
        assert!((0..35).all(|i| a[i] == (i / 5 * 100 + i % 5) as f32));
        assert!((0..33).all(|i| b[i] == (1000 + i / 11 * 100 + i % 11) as f32));
    }

    #[test]
    fn threads_have_scratch_of_their_own() {
        let team = Team::new(3).unwrap();
        let (mut out, mut scratch) = (vec![0.0; 500], vec![0.0; 3 * 64]);
        let fill = |scratch: &mut [f32], i: usize, out: &mut [f32]| {
            scratch.fill(i as f32);
            out[0] = scratch.iter().sum();
        };
        team.run(|| team.crew(None).for_each_chunk(&mut out, 1, &mut scratch, fill)).unwrap();
        assert!(out.iter().zip(0u16..).all(|(&sum, i)| sum == f32::from(i) * 64.0));
    }

    #[test]
    fn a_panic_is_an_error_and_the_team_lives_on() {
        for n_threads in [1, 2, 3] {
            let team = Team::new(n_threads).unwrap();
            for bad in [0, 17, 99] {
                let failed = team.run(|| {
                    team.crew(None).for_each(100, &|_, i| assert!(i != bad, "this item is meant to fail"))
                });
                assert_eq!(failed.unwrap_err().kind(), ErrorKind::Internal);
            }
            let in_step =
                catch_unwind(AssertUnwindSafe(|| team.run(|| panic!("this step is meant to fail"))));
            assert!(in_step.is_err());
            let n = AtomicU32::new(0);
            let count = |_: usize, _: usize| {
                n.fetch_add(1, Ordering::Relaxed);
            };
            team.run(|| team.crew(None).for_each(100, &count)).unwrap();
            assert_eq!(n.into_inner(), 100);
        }
    }

    #[test]
    fn a_cancelled_job_ends_early() {
        for n_threads in [1, 2, 3] {
            let team = Team::new(n_threads).unwrap();
            let (cancel, n) = (Cancel::default(), AtomicU32::new(0));
            let item = |_: usize, _: usize| {
                if n.fetch_add(1, Ordering::Relaxed) == 10 {
                    cancel.cancel();
                }
            };
            let result = team.run(|| team.crew(Some(&cancel)).for_each(100_000, &item));
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
            assert!(n.into_inner() < 100_000);
        }
    }

    #[test]
    fn an_op_outside_a_step_works_alone() {
        let team = Team::new(3).unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut out = vec![0u8; 50];
                        let set = |_: &mut [f32], _: usize, out: &mut [u8]| out.fill(1);
                        team.crew(None).for_each_chunk(&mut out, 1, &mut [], set).unwrap();
                        assert!(out.iter().all(|&x| x == 1));
                        team.run(|| team.crew(None).for_each_chunk(&mut out, 1, &mut [], set)).unwrap();
                    }
                });
            }
        });
    }
}
