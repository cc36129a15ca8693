//! Steps that are recorded once and replayed, which spares launching their kernels one by one.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::device::{Device, failed};
use crate::error::Result;

/// What is known of a step that repeats itself.
pub(super) enum Recording {
    /// It ran once, so that every kernel is loaded: next time it is recorded.
    Seen,
    /// It was recorded.
    Graph(Graph),
    /// It could not be recorded, for this reason: its kernels are launched one by one.
    Failed(String),
}

/// A recorded step.
pub(super) struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
    n_nodes: usize,
}

// SAFETY: the graph may be launched from any thread that has the device bound, one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `ops` launch, without running it.
    ///
    /// # Errors
    /// Those of `ops`; then nothing is recorded.
    pub fn record(device: &Arc<Device>, ops: impl FnOnce() -> Result<()>) -> Result<Self> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (recorded, graph) = device.while_recording(|stream| {
            // SAFETY: the stream lives as long as the device.
            if let Err(error) = unsafe { result::stream::begin_capture(stream, mode) } {
                return (Ok(()), Err(error));
            }
            let recorded = ops();
            // SAFETY: as above; ends what was begun, also where an op failed.
            (recorded, unsafe { result::stream::end_capture(stream) })
        });
        let mut n_nodes = 0;
        // SAFETY: the graph was just made; the executable one does not need it any more.
        let exec = graph.and_then(|graph| unsafe {
            let counted = sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut n_nodes).result();
            let exec = counted.and_then(|()| result::graph::instantiate(graph, CUgraphInstantiate_flags(0)));
            let _ = result::graph::destroy(graph);
            exec
        });
        let graph = exec.map(|exec| Self { device: device.clone(), exec, n_nodes });
        // What an op failed with says more than what became of the recording.
        recorded?;
        graph.map_err(failed("cannot record a step"))
    }

    /// Launches and copies of the step.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// Runs the step again.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: what the kernels point to belongs to the session that owns this recording, or to sessions that its key
        // names: by numbers that are never given twice, and change with their buffers, so those buffers are here again.
        unsafe { result::graph::launch(self.exec, self.device.stream()) }
            .map_err(failed("cannot replay a step"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: it is not launched any more. An error here has nobody to be told to.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
