//! Functions that rustc compiles, as callers and callees of both conventions that it supports here.
//!
//! For each signature there are two functions of each convention. They are in one library, which is
//! compiled and loaded when the test runs:
//!
//! * a *callee* stores the bytes of each argument, and again as a 64-bit number if it is narrow,
//!   and returns a given value;
//! * a *caller* loads arguments, calls an address, and stores the result in the same way.
//!
//! This tests what compilers rely on: narrow arguments are extended, stacks are aligned, and
//! registers are preserved.

#![allow(unsafe_code, reason = "loads a library and calls it")]

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::ptr;

use footbridge::abi::{Convention, Float, Language, Signature, Type, VectorWidth};

/// The distance between stored arguments, in bytes.
const STRIDE: usize = 1024;
/// The largest number of parameters.
pub const MAX_PARAMS: usize = 24;

/// The start of the library. `PASSED` holds the values that callers pass and callees return,
/// `FOUND` those that callees and callers received: the arguments, and the result last. `WIDE`
/// holds the narrow values of `FOUND` as 64-bit numbers.
const PRELUDE: &str = "
#![allow(warnings)]
use core::arch::x86_64::{__m128, __m256};
use core::mem::{transmute, MaybeUninit};
use core::ptr::{addr_of, addr_of_mut, copy_nonoverlapping};
#[repr(C, align(64))] pub struct Memory([MaybeUninit<u8>; 25 * 1024]);
#[no_mangle] pub static mut PASSED: Memory = Memory([MaybeUninit::uninit(); 25 * 1024]);
#[no_mangle] pub static mut FOUND: Memory = Memory([MaybeUninit::uninit(); 25 * 1024]);
#[no_mangle] pub static mut WIDE: [i64; 25] = [0; 25];
/// The number of calls of a callee.
#[no_mangle] pub static mut HITS: u64 = 0;
#[inline(always)] unsafe fn store<T>(i: usize, value: &T) {
    let to = addr_of_mut!(FOUND).cast::<u8>().add(1024 * i);
    copy_nonoverlapping((value as *const T).cast::<u8>(), to, size_of::<T>());
}
#[inline(always)] unsafe fn load<T: Copy>(i: usize) -> T {
    addr_of!(PASSED).cast::<u8>().add(1024 * i).cast::<T>().read()
}
#[inline(always)] unsafe fn widen(i: usize, value: i64) { addr_of_mut!(WIDE[i]).write(value) }
";

/// Writes Rust declarations.
#[derive(Default)]
struct Declarations {
    text: String,
    names: HashMap<Type, String>,
}

impl Declarations {
    /// The name of a type. A composite is declared first.
    fn name(&mut self, ty: &Type) -> String {
        let simple = match ty {
            Type::Isize | Type::Usize => ty.to_string(),
            Type::Bool | Type::I8 | Type::I16 | Type::I32 | Type::I64 => ty.to_string(),
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => ty.to_string(),
            Type::I128 | Type::U128 | Type::F32 | Type::F64 => ty.to_string(),
            Type::Vector(VectorWidth::V128) => "__m128".to_owned(),
            Type::Vector(VectorWidth::V256) => "__m256".to_owned(),
            Type::Ptr | Type::Managed | Type::GoFunc | Type::GoChan | Type::GoMap => {
                "*const u8".to_owned()
            }
            Type::Array(array) => format!("[{}; {}]", self.name(array.element()), array.length()),
            _ => String::new(),
        };
        if !simple.is_empty() {
            return simple;
        }
        if let Some(name) = self.names.get(ty) {
            return name.clone();
        }
        let (word, attribute, fields) = match ty {
            Type::Complex(Float::F32) => ("struct", String::new(), vec![Type::F32; 2]),
            Type::Complex(Float::F64) => ("struct", String::new(), vec![Type::F64; 2]),
            Type::GoString => ("struct", String::new(), vec![Type::Ptr, Type::Isize]),
            Type::GoSlice => ("struct", String::new(), vec![Type::Ptr, Type::Isize, Type::Isize]),
            Type::GoAny | Type::GoIface => ("struct", String::new(), vec![Type::Ptr, Type::Ptr]),
            Type::Struct(record) | Type::Union(record) => {
                let spec = record.spec();
                let number = |word, n: Option<u32>| n.map(|n| format!(", {word}({n})"));
                let attributes = [number("packed", spec.packed), number("align", spec.align)];
                let attributes = attributes.into_iter().flatten().collect();
                let word = if matches!(ty, Type::Struct(_)) { "struct" } else { "union" };
                (word, attributes, spec.fields.clone())
            }
            other => panic!("Rust does not have {other}"),
        };
        let mut list = String::new();
        for (i, field) in fields.iter().enumerate() {
            let field = self.name(field);
            write!(list, "pub f{i}: {field}, ").expect("a string");
        }
        let name = format!("T{}", self.names.len());
        self.names.insert(ty.clone(), name.clone());
        let layout = ty.layout(Language::C);
        writeln!(
            self.text,
            "#[repr(C{attribute})] #[derive(Clone, Copy)] pub {word} {name} {{ {list}}}\n\
             const _: () = assert!(size_of::<{name}>() == {} && align_of::<{name}>() == {});",
            layout.size_bytes, layout.align_bytes
        )
        .expect("a string");
        name
    }
}

/// Whether the value is also stored as a 64-bit number.
fn is_narrow(ty: &Type) -> bool {
    ty.is_word() && ty.layout(Language::C).size_bytes < 8
}

/// The conventions that rustc supports.
pub const CONVENTIONS: [Convention; 2] = [Convention::SystemV, Convention::Win64];

fn abi(convention: Convention) -> &'static str {
    match convention {
        Convention::SystemV => "sysv64",
        Convention::Win64 => "win64",
        other => panic!("rustc does not compile for {other}"),
    }
}

/// The source of the whole library.
fn source(signatures: &[Signature]) -> String {
    let mut declarations = Declarations::default();
    let mut functions = String::new();
    for (n, signature) in signatures.iter().enumerate() {
        let types: Vec<String> = signature.params().iter().map(|t| declarations.name(t)).collect();
        let result = signature.results().first().map(|ty| (ty, declarations.name(ty)));
        let arrow = result.as_ref().map(|(_, name)| format!(" -> {name}")).unwrap_or_default();
        for convention in CONVENTIONS {
            let abi = abi(convention);
            callee(&mut functions, n, abi, signature, &types, &arrow).expect("a string");
            caller(&mut functions, n, abi, signature, &types, &arrow).expect("a string");
        }
    }
    format!("{PRELUDE}{}{functions}", declarations.text)
}

fn callee(
    text: &mut String,
    n: usize,
    abi: &str,
    signature: &Signature,
    types: &[String],
    arrow: &str,
) -> std::fmt::Result {
    let params: Vec<String> = types.iter().enumerate().map(|(i, t)| format!("a{i}: {t}")).collect();
    let params = params.join(", ");
    writeln!(
        text,
        "#[no_mangle] pub unsafe extern \"{abi}\" fn callee_{abi}_{n}({params}){arrow} {{"
    )?;
    for (i, ty) in signature.params().iter().enumerate() {
        writeln!(text, "    store({i}, &a{i});")?;
        if is_narrow(ty) {
            writeln!(text, "    widen({i}, a{i} as i64);")?;
        }
    }
    writeln!(text, "    addr_of_mut!(HITS).write(addr_of!(HITS).read() + 1);")?;
    if !signature.results().is_empty() {
        writeln!(text, "    load({MAX_PARAMS})")?;
    }
    writeln!(text, "}}")
}

fn caller(
    text: &mut String,
    n: usize,
    abi: &str,
    signature: &Signature,
    types: &[String],
    arrow: &str,
) -> std::fmt::Result {
    let function = format!("unsafe extern \"{abi}\" fn({}){arrow}", types.join(", "));
    let args: Vec<String> = (0..types.len()).map(|i| format!("load({i})")).collect();
    writeln!(text, "#[no_mangle] pub unsafe extern \"C\" fn caller_{abi}_{n}(target: usize) {{")?;
    writeln!(text, "    let target: {function} = transmute(target);")?;
    writeln!(text, "    let result = target({});", args.join(", "))?;
    if let Some(ty) = signature.results().first() {
        writeln!(text, "    store({MAX_PARAMS}, &result);")?;
        if is_narrow(ty) {
            writeln!(text, "    widen({MAX_PARAMS}, result as i64);")?;
        }
    }
    writeln!(text, "}}")
}

/// The loaded functions of some signatures.
pub struct Library {
    handle: *mut libc::c_void,
    signatures: Vec<Signature>,
}

impl Library {
    /// Compiles and loads the functions. Files are created in `directory`.
    ///
    /// The error is a description of the failure.
    pub fn new(directory: &Path, signatures: &[Signature]) -> Result<Library, String> {
        let name = format!("footbridge_rust_{}", std::process::id());
        let (input, output) =
            (directory.join(format!("{name}.rs")), directory.join(format!("lib{name}.so")));
        std::fs::write(&input, source(signatures)).map_err(|e| e.to_string())?;
        let mut rustc = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()));
        rustc.args(["--edition=2021", "--crate-type=cdylib", "--cap-lints=allow"]);
        // Optimised enough that the compiler uses what it may rely on, but only little, to save
        // time.
        rustc.args(["-Copt-level=1", "-Cpanic=abort", "-Cdebuginfo=0", "-Ccodegen-units=2"]);
        if std::arch::is_x86_feature_detected!("avx") {
            rustc.arg("-Ctarget-feature=+avx");
        }
        let made = rustc.arg(&input).arg("-o").arg(&output).output();
        let made = made.map_err(|e| format!("{rustc:?}: {e}"))?;
        if !made.status.success() {
            return Err(format!("{rustc:?}\n{}", String::from_utf8_lossy(&made.stderr)));
        }
        let path = CString::new(output.to_str().expect("UTF-8")).expect("no zero byte");
        // SAFETY: the library only has the initialisers of Rust's standard library.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failed call, dlerror(3) returns a string.
            let reason = unsafe { std::ffi::CStr::from_ptr(libc::dlerror()) };
            return Err(reason.to_string_lossy().into_owned());
        }
        // The mapping remains, and the files are no longer needed. A failure to remove them is
        // harmless.
        let _ = (std::fs::remove_file(input), std::fs::remove_file(output));
        Ok(Library { handle, signatures: signatures.to_vec() })
    }

    fn symbol(&self, name: &str) -> usize {
        let name = CString::new(name).expect("no zero byte");
        // SAFETY: the library stays loaded.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!address.is_null(), "{name:?}");
        address as usize
    }

    /// The function that stores its arguments.
    pub fn callee(&self, n: usize, convention: Convention) -> usize {
        self.symbol(&format!("callee_{}_{n}", abi(convention)))
    }

    /// Calls an address with the arguments of [`Self::prepare`].
    ///
    /// # Safety
    /// 1. The target is a function of this convention and of the signature number `n`.
    pub unsafe fn call(&self, n: usize, convention: Convention, target: usize) {
        let caller = self.symbol(&format!("caller_{}_{n}", abi(convention)));
        // SAFETY: `caller` declares this type.
        let caller: extern "C" fn(usize) = unsafe { std::mem::transmute(caller) };
        caller(target);
    }

    fn put(&self, memory: &str, i: usize, bytes: &[u8]) {
        assert!(bytes.len() <= STRIDE && i <= MAX_PARAMS);
        let to = self.symbol(memory) as *mut u8;
        // SAFETY: a static of the library, which only this thread uses.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(i * STRIDE), bytes.len()) };
    }

    /// Stores the values that a caller passes and a callee returns, and resets the results.
    pub fn prepare(&self, args: &[Vec<u8>], results: &[Vec<u8>]) {
        for (i, bytes) in args.iter().enumerate() {
            self.put("PASSED", i, bytes);
        }
        if let [bytes] = results {
            self.put("PASSED", MAX_PARAMS, bytes);
        }
        for i in 0..=MAX_PARAMS {
            self.put("FOUND", i, &[0xa5; STRIDE]);
            // SAFETY: a static of the library, which only this thread uses.
            unsafe { (self.symbol("WIDE") as *mut i64).add(i).write(0x5a5a_5a5a_5a5a_5a5a) };
        }
        // SAFETY: a static of the library, which only this thread uses.
        unsafe { (self.symbol("HITS") as *mut u64).write(0) };
    }

    /// The number of calls of a callee.
    pub fn hits(&self) -> u64 {
        // SAFETY: a static of the library, which only this thread uses.
        unsafe { (self.symbol("HITS") as *const u64).read() }
    }

    fn found(&self, i: usize, ty: &Type) -> Found {
        let bytes = ty.layout(Language::C).size_bytes as usize;
        // SAFETY: statics of the library, which only this thread uses.
        unsafe {
            let from = (self.symbol("FOUND") as *const u8).add(i * STRIDE);
            let wide = (self.symbol("WIDE") as *const i64).add(i).read();
            Found {
                bytes: std::slice::from_raw_parts(from, bytes).to_vec(),
                wide: is_narrow(ty).then_some(wide),
            }
        }
    }

    /// The arguments that a callee received.
    pub fn arguments(&self, n: usize) -> Vec<Found> {
        let params = self.signatures[n].params().iter().enumerate();
        params.map(|(i, ty)| self.found(i, ty)).collect()
    }

    /// The results that a caller received.
    pub fn results(&self, n: usize) -> Vec<Found> {
        self.signatures[n].results().iter().map(|ty| self.found(MAX_PARAMS, ty)).collect()
    }
}

/// A value that compiled code received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The bytes, including padding.
    pub bytes: Vec<u8>,
    /// A narrow value as a 64-bit number.
    pub wide: Option<i64>,
}

impl Found {
    /// The expected value. `bytes` has zeros in padding.
    pub fn expected(ty: &Type, bytes: &[u8]) -> Found {
        let wide = is_narrow(ty).then(|| {
            let negative = ty.is_signed() && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut whole = [if negative { 0xff } else { 0 }; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            i64::from_le_bytes(whole)
        });
        Found { bytes: bytes.to_vec(), wide }
    }

    /// The same value with zeros in padding.
    pub fn masked(mut self, data: &[bool]) -> Found {
        for (byte, data) in self.bytes.iter_mut().zip(data) {
            *byte = if *data { *byte } else { 0 };
        }
        self
    }
}
