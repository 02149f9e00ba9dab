//! Callers and callees in C, compiled by gcc and loaded into this process.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::gcc::{self, Library};

use footbridge::abi::{Assignment, Convention, Passing, Signature};

use crate::call::{Buffers, RESULT_SLOT, STRIDE};
use support::c_types::C;

const PRELUDE: &str = "
typedef unsigned char byte;
byte *footbridge_record;
const byte *footbridge_result;
#define MS __attribute__((ms_abi))
/* What a callee may do with its arguments in memory. */
static __attribute__((noinline)) void junk(void *p, unsigned long n) {
    __builtin_memset(p, 0xa5, n);
    __asm__ volatile(\"\" ::: \"memory\");
}
";

/// The number of functions that gcc compiles for each signature.
pub const FUNCTIONS: usize = 4;

/// C source for some signatures.
#[derive(Default)]
pub struct Source {
    c: C,
    functions: String,
    table: String,
}

impl Source {
    /// Adds the functions of a signature: a caller of `entry` and a callee of `target`, in each
    /// convention. Assignments are in the order of [`CONVENTIONS`].
    pub fn add(
        &mut self,
        number: usize,
        (entry, entries): (&Signature, &[Assignment; 2]),
        (target, targets): (&Signature, &[Assignment; 2]),
    ) {
        let mut result: Result<(), std::fmt::Error> = Ok(());
        for (assignment, convention) in entries.iter().zip(["s", "w"]) {
            let name = format!("caller_{convention}_{number}");
            result = result.and_then(|()| self.caller(&name, entry, assignment));
            write!(self.table, "{name}, ").expect("a string");
        }
        for (assignment, convention) in targets.iter().zip(["s", "w"]) {
            let name = format!("callee_{convention}_{number}");
            result = result.and_then(|()| self.callee(&name, target, assignment));
            write!(self.table, "{name}, ").expect("a string");
        }
        result.expect("a string");
    }

    /// A System V function that calls its first argument. A value that is passed by reference is
    /// passed as an address, which the convention does not distinguish.
    fn caller(
        &mut self,
        name: &str,
        signature: &Signature,
        assignment: &Assignment,
    ) -> std::fmt::Result {
        let mut types = Vec::new();
        let mut args = Vec::new();
        let mut named = signature.named_params();
        let text = &mut self.functions;
        let mut body = String::new();
        if assignment.result_pointer().is_some() {
            types.push("void *".to_owned());
            args.push(format!("p[{RESULT_SLOT}]"));
            named = named.map(|named| named + 1);
        }
        for (i, value) in assignment.params().iter().enumerate() {
            if let Passing::Reference(_) = value.passing() {
                types.push("void *".to_owned());
                args.push(format!("p[{i}]"));
                continue;
            }
            let ty = self.c.name(value.ty());
            let off = STRIDE * i;
            writeln!(body, "  {ty} a{i}; __builtin_memcpy(&a{i}, a + {off}, sizeof a{i});")?;
            types.push(ty);
            args.push(format!("a{i}"));
        }
        let result = match assignment.results() {
            [_] if assignment.result_pointer().is_some() => "void *".to_owned(),
            [value] => self.c.name(value.ty()),
            _ => "void".to_owned(),
        };
        let attribute = attribute(assignment);
        let params = params(&types, named);
        let args = args.join(", ");
        let call = format!("(({attribute}{result} (*)({params}))f)({args})");
        writeln!(text, "static void {name}(void *f, const byte *a, void **p, byte *r) {{")?;
        write!(text, "{body}")?;
        match result.as_str() {
            "void" => writeln!(text, "  {call};")?,
            _ => writeln!(text, "  {result} v = {call}; __builtin_memcpy(r, &v, sizeof v);")?,
        }
        writeln!(text, "}}")
    }

    /// A function that stores its arguments, overwrites the memory that it owns, and returns given
    /// bytes.
    fn callee(
        &mut self,
        name: &str,
        signature: &Signature,
        assignment: &Assignment,
    ) -> std::fmt::Result {
        let types: Vec<String> = signature.params().iter().map(|ty| self.c.name(ty)).collect();
        let result = signature.results().first().map(|ty| self.c.name(ty));
        let named = signature.named_params();
        let attribute = attribute(assignment);
        let list: Vec<String> = types[..named.unwrap_or(types.len())]
            .iter()
            .enumerate()
            .map(|(i, ty)| format!("{ty} a{i}"))
            .collect();
        let params = params(&list, named);
        let returned = result.as_deref().unwrap_or("void");
        let text = &mut self.functions;
        writeln!(text, "static {attribute}{returned} {name}({params}) {{")?;
        writeln!(text, "  byte *r = footbridge_record;")?;
        if let Some(named) = named {
            let prefix = match assignment.convention() {
                Some(Convention::Win64) => "__builtin_ms_va",
                _ => "__builtin_va",
            };
            writeln!(text, "  {prefix}_list ap; {prefix}_start(ap, a{});", named - 1)?;
            let values = types.iter().zip(assignment.params()).enumerate();
            for (i, (ty, value)) in values.skip(named) {
                // gcc decides by its default convention, not by that of the list, which types are
                // passed by reference. So the address is read instead.
                match value.passing() {
                    Passing::Reference(_) => {
                        writeln!(text, "  {ty} a{i} = *({ty} *)__builtin_va_arg(ap, void *);")?;
                    }
                    _ => writeln!(text, "  {ty} a{i} = __builtin_va_arg(ap, {ty});")?,
                }
            }
            writeln!(text, "  {prefix}_end(ap);")?;
        }
        for i in 0..types.len() {
            writeln!(text, "  __builtin_memcpy(r + {}, &a{i}, sizeof a{i});", STRIDE * i)?;
        }
        for (i, value) in assignment.params().iter().enumerate() {
            let is_named = named.is_none_or(|named| i < named);
            if let (true, Passing::Area(_) | Passing::Reference(_)) = (is_named, value.passing()) {
                writeln!(text, "  junk(&a{i}, sizeof a{i});")?;
            }
        }
        if let Some(result) = result {
            writeln!(text, "  {result} v;")?;
            writeln!(text, "  __builtin_memcpy(&v, footbridge_result, sizeof v); return v;")?;
        }
        writeln!(text, "}}")
    }
}

fn attribute(assignment: &Assignment) -> &'static str {
    match assignment.convention() {
        Some(Convention::Win64) => "MS ",
        Some(Convention::SystemV) => "",
        other => panic!("gcc does not support {other:?}"),
    }
}

fn params(list: &[String], named: Option<usize>) -> String {
    match named {
        Some(named) => format!("{}, ...", list[..named].join(", ")),
        None if list.is_empty() => "void".to_owned(),
        None => list.join(", "),
    }
}

/// Compiles all sources, several in parallel, and returns the addresses of all functions, in the
/// order in which they were added. The functions access `buffers`.
pub fn load(sources: &[Source], buffers: &Buffers) -> Vec<u64> {
    let folder = Folder::new();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(source) = sources.get(i) else { break };
                    compile(source, OPTIMIZATIONS[i % 4], &folder.0.join(format!("{i}.c")));
                }
            });
        }
    });
    let mut functions = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let count = source.table.matches(',').count();
        functions.extend(functions_of(&folder.0.join(format!("{i}.so")), count, buffers));
    }
    functions
}

/// A folder for temporary files, which is removed when the test passes.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("footbridge-adapters-gcc-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).expect("the folder exists");
        }
    }
}

/// Several levels: for example, unoptimised callees use their home slots.
const OPTIMIZATIONS: [&str; 4] = ["-O1", "-O0", "-O1", "-O2"];

fn compile(source: &Source, optimization: &str, path: &Path) {
    let Source { c, functions, table } = source;
    let text = format!(
        "{PRELUDE}{}{functions}void *const footbridge_functions[] = {{{table}}};\n",
        c.types
    );
    std::fs::write(path, text).expect("written");
    // Without `-mno-vzeroupper`, gcc 12 clears the upper half of a union with a vector that is
    // returned in ymm0.
    let mut arguments =
        vec![optimization, "-w", "-Wno-psabi", "-fPIC", "-shared", "-mavx2", "-mno-vzeroupper"];
    if std::arch::is_x86_feature_detected!("avx512f") {
        arguments.push("-mavx512f");
    }
    gcc::compile("gcc", &arguments, &path.with_extension("so"), &[path]);
}

fn functions_of(library: &Path, count: usize, buffers: &Buffers) -> Vec<u64> {
    // SAFETY: the library has no constructors. Its symbols are those of `PRELUDE` and `compile`,
    // and it stays loaded.
    unsafe {
        let library = Library::open(library);
        let symbol = |name| library.symbol(name);
        *symbol(c"footbridge_record").cast() = (&raw const buffers.record).cast::<u8>();
        *symbol(c"footbridge_result").cast() = (&raw const buffers.result).cast::<u8>();
        let table: *const u64 = symbol(c"footbridge_functions").cast();
        std::slice::from_raw_parts(table, count).to_vec()
    }
}
