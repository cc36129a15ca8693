//! Build script of the runtime: names the shared library so that programs find it by its ABI version, and, for the
//! `cuda` feature, compiles the kernels with nvcc.

use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A part of the kernels that is compiled for itself.
struct Part {
    /// Name of the result.
    name: &'static str,
    source: &'static str,
    /// What distinguishes it from others of the same source.
    define: Option<&'static str>,
    /// Whether some of its kernels want more registers than there are. In all others that is an error.
    may_spill: bool,
    /// Whether it uses instructions that only Hopper has.
    is_hopper: bool,
    /// Whether only the runtime's own tests have it.
    is_test: bool,
}

const fn part(name: &'static str, source: &'static str) -> Part {
    Part { name, source, define: None, may_spill: false, is_hopper: false, is_test: false }
}

/// Attention with one type of the cache.
const fn attn(name: &'static str, source: &'static str, define: &'static str, may_spill: bool) -> Part {
    Part { define: Some(define), may_spill, ..part(name, source) }
}

const PARTS: [Part; 20] = [
    attn("attn_decode_f16", "attn_decode.cu", "-DLG_KV_F16", false),
    attn("attn_decode_bf16", "attn_decode.cu", "-DLG_KV_BF16", false),
    attn("attn_decode_q8", "attn_decode.cu", "-DLG_KV_Q8", true),
    attn("attn_prefill_f16", "attn_prefill.cu", "-DLG_KV_F16", true),
    attn("attn_prefill_bf16", "attn_prefill.cu", "-DLG_KV_BF16", true),
    attn("attn_prefill_q8", "attn_prefill.cu", "-DLG_KV_Q8", true),
    attn("attn_rows_f32", "attn_rows.cu", "-DLG_KV_F32", true),
    attn("attn_rows_f16", "attn_rows.cu", "-DLG_KV_F16", true),
    attn("attn_rows_bf16", "attn_rows.cu", "-DLG_KV_BF16", true),
    attn("attn_rows_q8", "attn_rows.cu", "-DLG_KV_Q8", true),
    part("gemm", "gemm.cu"),
    part("kv", "kv.cu"),
    part("matvec", "matvec.cu"),
    part("matvec_mma", "matvec_mma.cu"),
    part("rowwise", "rowwise.cu"),
    part("top", "top.cu"),
    Part { is_hopper: true, ..part("attn_decode_sm90", "sm90/attn_decode.cu") },
    Part { is_hopper: true, ..part("attn_prefill_sm90", "sm90/attn_prefill.cu") },
    Part { is_hopper: true, ..part("gemm_sm90", "sm90/gemm.cu") },
    Part { is_hopper: true, is_test: true, ..part("ptx_test_sm90", "sm90/ptx_test.cu") },
];

/// Machine code for Hopper.
const HOPPER: &str = "arch=compute_90a,code=sm_90a";

/// Machine code for Ampere and Ada, for Hopper, and portable code that the driver of a later card compiles.
const TARGETS: [&str; 3] = ["arch=compute_80,code=sm_80", HOPPER, "arch=compute_90,code=compute_90"];

const HOW_TO_GET_NVCC: &str = "the feature `cuda` needs nvcc 13.0, and it is neither in CUDA_HOME nor on the PATH nor \
    in .cuda. This installs it (300 MB, no GPU needed):\n\n    \
    pip install --target .cuda 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'\n";

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["CUDA_HOME", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let abi_version = env!("CARGO_PKG_VERSION_MAJOR");
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblonggen.so.{abi_version}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
        match find_nvcc(&root) {
            Some(nvcc) => compile_all(&nvcc, &root.join("kernels"), &out),
            None => fail(HOW_TO_GET_NVCC),
        }
    }
}

fn find_nvcc(root: &Path) -> Option<PathBuf> {
    let homes = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        homes.into_iter().chain(env::split_paths(&path)).chain([root.join(".cuda/nvidia/cu13/bin")]);
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// Compiles everything, on all cores, and writes the list of results that the runtime includes: each with whether it is
/// for Hopper alone.
fn compile_all(nvcc: &Path, kernels: &Path, out: &Path) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(part) = PARTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(nvcc, kernels, out, part);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let entry = |Part { name, is_hopper, is_test, .. }: &Part| {
        let cfg = if *is_test { "#[cfg(test)] " } else { "" };
        format!("    {cfg}({is_hopper}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))),\n")
    };
    let list = format!("[\n{}]\n", PARTS.iter().map(entry).collect::<String>());
    if let Err(error) = std::fs::write(out.join("kernels.rs"), list) {
        fail(&format!("{}: {error}", out.display()));
    }
}

fn compile(nvcc: &Path, kernels: &Path, out: &Path, part: &Part) {
    let Part { name, source, define, may_spill, is_hopper, .. } = *part;
    let (result, stamp) = (out.join(format!("{name}.fatbin")), out.join(format!("{name}.stamp")));
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "-Werror", "all-warnings"]);
    let targets = if is_hopper { &[HOPPER] } else { &TARGETS[..] };
    command.args(targets.iter().flat_map(|target| ["-gencode", target]));
    command.args(define);
    if !may_spill {
        command.args(["-Xptxas", "-warn-spills"]);
    }
    let made_from = format!("{command:?} {:x}", hash_of_inputs(nvcc, kernels, source));
    if std::fs::read_to_string(&stamp).is_ok_and(|before| before == made_from) && result.is_file() {
        return;
    }
    // The result and its stamp appear together and only once all is well, whatever ends this program before.
    let _ = std::fs::remove_file(&stamp);
    let unchecked = out.join(format!("{name}.{}", std::process::id()));
    command.arg("-o").arg(&unchecked).arg(kernels.join(source));
    match command.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            // Products that wait for each other are no warning to the compiler, but C7508 to C7520 say so.
            if !output.status.success() || said.contains("(C75") {
                fail(&format!("nvcc {source}: {}\n{said}", output.status));
            }
        }
        Err(error) => fail(&format!("{}: {error}", nvcc.display())),
    }
    if let Err(error) = std::fs::rename(&unchecked, &result) {
        fail(&format!("{}: {error}", result.display()));
    }
    // Without a stamp it is just compiled again.
    let _ = std::fs::write(stamp, made_from);
}

/// Changes with the compiler and with what `source` may include: nvcc takes minutes for all parts.
fn hash_of_inputs(nvcc: &Path, kernels: &Path, source: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for variable in ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
        env::var_os(variable).hash(&mut hasher);
    }
    if let Ok(Ok(modified)) = std::fs::metadata(nvcc).map(|metadata| metadata.modified()) {
        modified.hash(&mut hasher);
    }
    let source = kernels.join(source);
    let folders = [kernels.join("common"), source.parent().unwrap_or(kernels).to_path_buf()];
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let is_header = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "cuh");
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(is_header).chain([source]).collect();
    files.sort();
    for file in files {
        std::fs::read(&file).unwrap_or_default().hash(&mut hasher);
        file.hash(&mut hasher);
    }
    hasher.finish()
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}
