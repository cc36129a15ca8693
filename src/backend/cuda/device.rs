//! One CUDA device: its memory, its stream, and the one place where kernels are launched.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUlaunchAttributeID, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::held::Slabs;
use super::params::{Address, Params, TensorMap};
use crate::alloc::Meter;
use crate::error::{Error, ErrorKind, Result};

/// The kernels, and whether they are for Hopper alone; see `kernels/build.rs`.
const KERNELS: &[(bool, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The CUDA version that the kernels were compiled with, as the driver numbers versions.
const CUDA_VERSION: i32 = 13_000;

/// Shared memory that a kernel gets without asking: 48 KiB, less what it may have of its own.
const DEFAULT_SHARED_BYTES: u32 = 40 * 1024;

/// A kernel, and whether it may use all the shared memory it needs already.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// One device with the kernels loaded.
pub(super) struct Device {
    context: Arc<CudaContext>,
    /// Where steps run, one at a time.
    stream: Arc<CudaStream>,
    /// Where a step is recorded. Nothing else may happen there meanwhile, and other threads wait for `stream`.
    recorder: Arc<CudaStream>,
    /// Whether the running step is recorded instead of run.
    is_recording: AtomicBool,
    /// Where new memory is filled, also while a step runs.
    filler: Arc<CudaStream>,
    /// Where blocks are copied to the host, also while a step runs.
    copier: Arc<CudaStream>,
    /// Whether `stream` has not waited for the latest of those copies.
    has_copies: AtomicBool,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, Function>>,
    /// What people call it.
    pub name: String,
    n_multiprocessors: u32,
    /// How many blocks of a kernel run at once, by its name, threads and shared memory of a block.
    occupancies: Mutex<HashMap<(String, [u32; 2]), usize>>,
    /// Most shared memory of one block of threads.
    pub max_shared_bytes: u32,
    /// Bytes of the second-level cache.
    pub cache_bytes: usize,
    /// Whether it runs the kernels that are for Hopper alone.
    pub is_hopper: bool,
    /// Whether kernels may begin before the ones before them have ended.
    begins_early: bool,
    /// Most bytes per second of its memory, if the driver says what it takes.
    pub bandwidth: Option<f64>,
    pub meter: Meter,
    /// Memory of the host that kernels reach.
    pub slabs: Slabs,
}

// SAFETY: the handles are the driver's, which may be used from any thread that has the context bound: methods bind it, or
// are called within a step, whose thread has.
unsafe impl Send for Device {}
// SAFETY: as above; the tables that change are behind mutexes.
unsafe impl Sync for Device {}

/// Says what failed.
pub(super) fn failed(what: &str) -> impl Fn(DriverError) -> Error {
    move |error| {
        let text = error.error_string().map_or_else(|_| format!("{error:?}"), |s| s.to_string_lossy().into());
        Error::new(ErrorKind::Device, format!("cuda: {what}: {text}"))
    }
}

impl Device {
    /// Opens the `ordinal`-th device.
    ///
    /// # Errors
    /// `Device`: no driver, one too old, no such device, or a device too old for the kernels.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let unusable = |why: String| Error::new(ErrorKind::Device, format!("cuda: {why}"));
        // SAFETY: loads the driver's library if there is one; cudarc would panic without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(unusable("no NVIDIA driver (libcuda.so.1) is installed".into()));
        }
        result::init().map_err(failed("cannot start the driver"))?;
        let mut version = 0;
        // SAFETY: writes the version.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed("cannot ask the driver"))?;
        if version < CUDA_VERSION {
            return Err(unusable(format!(
                "the driver supports CUDA {}.{}, this build needs {}.{}",
                version / 1000,
                version % 1000 / 10,
                CUDA_VERSION / 1000,
                CUDA_VERSION % 1000 / 10
            )));
        }
        let n_devices = result::device::get_count().map_err(failed("cannot count devices"))?;
        if usize::try_from(n_devices).is_ok_and(|n| ordinal >= n) {
            return Err(unusable(format!("there is no device {ordinal}: {n_devices} are visible")));
        }
        let context = CudaContext::new(ordinal).map_err(failed("cannot open the device"))?;
        let name = context.name().map_err(failed("cannot ask for a name"))?;
        let (major, minor) = context.compute_capability().map_err(failed("cannot ask what it can do"))?;
        if major < 8 {
            return Err(unusable(format!("{name} has compute capability {major}.{minor}, 8.0 is needed")));
        }
        let attribute = |attribute| {
            let value = context.attribute(attribute).map_err(failed("cannot ask what it has"))?;
            Ok::<_, Error>(u32::try_from(value).unwrap_or(0))
        };
        let n_multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let max_shared_bytes =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let cache_bytes = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize;
        let clock = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let width = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        // Kilohertz, bits, and two transfers per clock.
        let bandwidth = f64::from(clock) * 1e3 * f64::from(width) / 8.0 * 2.0;
        // Else the first stream waits for all of the device's work, which fails while another model's step is recorded.
        // SAFETY: nothing here is a slice of cudarc's, whose uses would be tracked.
        unsafe { context.disable_event_tracking() };
        let new_stream = || context.new_stream().map_err(failed("cannot make a stream"));
        let (stream, recorder) = (new_stream()?, new_stream()?);
        let (filler, copier) = (new_stream()?, new_stream()?);
        let (mut modules, mut kernels) = (Vec::new(), HashMap::new());
        let is_hopper = (major, minor) == (9, 0);
        for (for_hopper, image) in KERNELS {
            if *for_hopper && !is_hopper {
                continue;
            }
            // SAFETY: the image is a fatbin, which says its own length.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            let module = module.map_err(failed("cannot load the kernels"))?;
            modules.push(module);
            for (name, handle) in functions(module).map_err(failed("cannot list the kernels"))? {
                kernels.insert(name, Function { handle, shared_bytes: DEFAULT_SHARED_BYTES });
            }
        }
        Ok(Arc::new(Self {
            context,
            stream,
            recorder,
            is_recording: AtomicBool::new(false),
            filler,
            copier,
            has_copies: AtomicBool::new(false),
            modules,
            functions: Mutex::new(kernels),
            name,
            n_multiprocessors,
            occupancies: Mutex::default(),
            max_shared_bytes,
            cache_bytes,
            is_hopper,
            begins_early: major >= 9,
            bandwidth: Some(bandwidth).filter(|&bandwidth| bandwidth > 0.0),
            meter: Meter::default(),
            slabs: Slabs::default(),
        }))
    }

    /// Makes the device current on this thread.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("cannot bind the device to a thread"))
    }

    /// The stream of the running step's work.
    pub fn stream(&self) -> sys::CUstream {
        match self.is_recording() {
            true => self.recorder.cu_stream(),
            false => self.stream.cu_stream(),
        }
    }

    /// Whether the running step is recorded.
    pub fn is_recording(&self) -> bool {
        self.is_recording.load(Ordering::Relaxed)
    }

    /// Lets the running step's `ops` go to a stream that does not run them, while `record` turns them into something.
    pub fn while_recording<T>(&self, record: impl FnOnce(sys::CUstream) -> T) -> T {
        // Also when an op panics, the next step runs.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        self.is_recording.store(true, Ordering::Relaxed);
        let _ends = Ends(&self.is_recording);
        record(self.recorder.cu_stream())
    }

    /// Bytes of the device that are free, and all of them.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(failed("cannot ask for free memory"))
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("a kernel failed"))
    }

    /// The stream on which blocks that steps have left are copied to the host. Nothing may overwrite them before
    /// [`wait_for_copies`](Self::wait_for_copies).
    pub fn copier(&self) -> Result<sys::CUstream> {
        // Whatever has overwritten blocks has waited first: if copies are under way, they began behind all that did.
        if !self.has_copies.swap(true, Ordering::Relaxed) {
            self.copier.join(&self.stream).map_err(failed("cannot wait for a step"))?;
        }
        Ok(self.copier.cu_stream())
    }

    /// What is queued from here on begins when the blocks that are being copied to the host have been.
    pub fn wait_for_copies(&self) -> Result<()> {
        match self.has_copies.swap(false, Ordering::Relaxed) {
            true => self.stream.join(&self.copier).map_err(failed("cannot wait for copies")),
            false => Ok(()),
        }
    }

    /// Allocates memory, zeroed, or filled with NaNs where debug assertions are on.
    ///
    /// # Errors
    /// `OutOfMemory`, with what is free.
    pub fn alloc(self: &Arc<Self>, n_bytes: usize) -> Result<DeviceBuf> {
        self.bind()?;
        let fill = if cfg!(debug_assertions) { 0xff } else { 0 };
        let mut filled = Ok(());
        // SAFETY: memory of this size is allocated, then filled.
        let address = unsafe {
            let address =
                result::malloc_sync(n_bytes.max(1)).map_err(|error| self.out_of_memory(n_bytes, error))?;
            if n_bytes > 0 {
                filled = result::memset_d8_async(address, fill, n_bytes, self.filler.cu_stream());
            }
            address
        };
        self.meter.add(n_bytes);
        let buf = DeviceBuf { address, n_bytes, device: self.clone() };
        filled.and_then(|()| self.filler.synchronize()).map_err(failed("cannot fill memory"))?;
        Ok(buf)
    }

    /// How Hopper's copy engine reads boxes of a matrix: `box_rows` rows of 64 elements, in the order in which its tensor cores
    /// want them. The matrix has 16-bit floats, lies at a multiple of 16 bytes, and rows are such a multiple long.
    pub fn tensor_map(&self, matrix: &Matrix16, box_rows: u32) -> Result<TensorMap> {
        let Matrix16 { address, rows, cols, is_bf16 } = *matrix;
        let ty = match is_bf16 {
            true => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            false => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let (sizes, strides) = ([cols as u64, rows as u64], [2 * cols as u64]);
        let (box_sizes, steps) = ([64, box_rows], [1, 1]);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: every array has an entry for each of the map's dimensions, strides for all but the first, and the map
        // is only written.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                ty,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                box_sizes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
        }
        .map_err(|error| failed(&format!("cannot describe {matrix:?} to the copy engine"))(error))?;
        Ok(TensorMap { opaque: map.opaque })
    }

    fn out_of_memory(&self, n_bytes: usize, error: DriverError) -> Error {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return failed("cannot allocate")(error);
        }
        let free = match self.memory() {
            Ok((free, total)) => format!("{free} of {total} bytes are free"),
            Err(_) => "too few are free".into(),
        };
        Error::new(
            ErrorKind::OutOfMemory,
            format!("cannot allocate {n_bytes} bytes on {}: {free}", self.name),
        )
    }

    /// Launches the kernel `name` over `grid` blocks of `block` threads with `shared_bytes` of shared memory.
    pub fn launch<P: Params>(
        &self,
        name: &str,
        grid: [usize; 3],
        block: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        self.launch_on(self.stream(), name, grid, block, shared_bytes, params)
    }

    /// The same on a stream.
    pub fn launch_on<P: Params>(
        &self,
        stream: sys::CUstream,
        name: &str,
        grid: [usize; 3],
        block: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        let [x, y, z] = grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.function(name, shared_bytes)?;
        let mut pointers = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // The kernels of a recorded step may begin before the ones before them have ended; see launch.cuh.
        let mut begins_early = sys::CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: stream,
            attrs: &mut begins_early,
            numAttrs: u32::from(self.begins_early && self.is_recording()),
        };
        // SAFETY: `P` is what the kernel takes, and the driver copies it during the call. That the addresses in it
        // are of living buffers that are large enough is the duty of the op's wrapper.
        unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|error| failed(&format!("cannot launch {name} over {x} x {y} x {z} blocks"))(error))
    }

    /// How many blocks of the kernel `name` the device runs at a time, of `block` threads with `shared_bytes` each.
    pub fn blocks_at_once(&self, name: &str, block: u32, shared_bytes: u32) -> Result<usize> {
        let mut known = self.occupancies.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), [block, shared_bytes]);
        if let Some(&n) = known.get(&key) {
            return Ok(n);
        }
        let (function, mut n) = (self.function(name, shared_bytes)?, 0);
        let block = i32::try_from(block).unwrap_or(i32::MAX);
        // SAFETY: the handle is of a loaded module.
        unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut n, function, block, shared_bytes as usize)
        }
        .result()
        .map_err(failed("cannot ask how many blocks fit"))?;
        let n = usize::try_from(n).unwrap_or(1).max(1) * self.n_multiprocessors as usize;
        known.insert(key, n);
        Ok(n)
    }

    fn function(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(function) = functions.get_mut(name) else {
            return Err(Error::new(ErrorKind::Internal, format!("cuda: there is no kernel {name}")));
        };
        if shared_bytes > function.shared_bytes {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let value = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the handle is of a loaded module.
            unsafe { result::function::set_function_attribute(function.handle, attribute, value) }.map_err(
                |error| failed(&format!("{name} needs {shared_bytes} bytes of shared memory"))(error),
            )?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.handle)
    }
}

/// The kernels of a module, by name.
fn functions(module: sys::CUmodule) -> Result<Vec<(String, sys::CUfunction)>, DriverError> {
    let mut n = 0;
    // SAFETY: the module is loaded, and each call writes as much as it is given room for.
    let handles = unsafe {
        sys::cuModuleGetFunctionCount(&mut n, module).result()?;
        let mut handles = vec![std::ptr::null_mut(); n as usize];
        sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), n, module).result()?;
        handles
    };
    let named = |handle| {
        let mut name = std::ptr::null();
        // SAFETY: the driver hands out a string that lives as long as the module.
        let name = unsafe {
            sys::cuFuncGetName(&mut name, handle).result()?;
            CStr::from_ptr(name)
        };
        Ok((name.to_string_lossy().into_owned(), handle))
    };
    handles.into_iter().map(named).collect()
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.bind().and_then(|()| self.wait_for_copies()).and_then(|()| self.synchronize()).is_ok() {
            self.slabs.clear();
            for &module in &self.modules {
                // SAFETY: nobody launches its kernels any more. An error here has nobody to be told to.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

/// A matrix of 16-bit floats in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix16 {
    pub address: Address,
    pub rows: usize,
    pub cols: usize,
    pub is_bf16: bool,
}

/// Memory of a device, counted by its meter.
pub struct DeviceBuf {
    address: Address,
    n_bytes: usize,
    device: Arc<Device>,
}

impl DeviceBuf {
    /// Where it begins.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Where it begins, if it holds `n` numbers of 32 bits.
    pub(super) fn f32s(&self, n: usize) -> Result<Address> {
        self.check(0, n.saturating_mul(size_of::<f32>()))?;
        Ok(self.address)
    }

    /// Length in bytes.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Copies `src` to byte `at`, before the work that is queued later; `src` is free when this returns.
    pub(super) fn upload(&mut self, at: usize, src: &[u8]) -> Result<()> {
        self.check(at, src.len())?;
        self.device.bind()?;
        let stream = self.device.stream.cu_stream();
        // SAFETY: the range was checked; pageable memory is read before the call returns.
        unsafe { result::memcpy_htod_async(self.address + at as u64, src, stream) }
            .map_err(failed("cannot copy to the device"))
    }

    /// Copies from byte `at` on, once the work of the running step is done.
    pub(super) fn download(&self, dst: &mut [u8], at: usize) -> Result<()> {
        self.check(at, dst.len())?;
        self.device.bind()?;
        // SAFETY: the range was checked, and `dst` is borrowed until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(dst, self.address + at as u64, self.device.stream.cu_stream()) }
            .map_err(failed("cannot copy from the device"))?;
        self.device.synchronize()
    }

    /// Copies a range of `src` to byte `at` and those behind it, as a part of the running step.
    pub(super) fn copy_from(&mut self, at: usize, src: &Self, range: Range<usize>) -> Result<()> {
        self.check(at, range.len())?;
        src.check(range.start, range.len())?;
        let (to, from) = (self.address + at as u64, src.address + range.start as u64);
        // SAFETY: both ranges were checked.
        unsafe { result::memcpy_dtod_async(to, from, range.len(), self.device.stream()) }
            .map_err(failed("cannot copy on the device"))
    }

    fn check(&self, at: usize, n: usize) -> Result<()> {
        match at.checked_add(n).is_some_and(|end| end <= self.n_bytes) {
            true => Ok(()),
            false => Err(Error::invalid(format!("{n} bytes at {at} of a buffer of {}", self.n_bytes))),
        }
    }
}

impl Drop for DeviceBuf {
    fn drop(&mut self) {
        self.device.meter.sub(self.n_bytes);
        if self.device.bind().is_ok() {
            // SAFETY: allocated in `Device::alloc`; freeing waits for the work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
