//! Build script of the runtime: names the shared library so that programs find it by its ABI version.

fn main() {
    println!("cargo::rerun-if-changed=kernels/build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblonggen.so.0");
    }
}
