//! Turns plans into machine code, one file per architecture. Each compiles on every host.

pub(crate) mod aarch64;
pub(crate) mod x86_64;

crate::on_executing_host! {
    /// dynasm's assembler for the machine that executes, which writes to a vector and is set to the
    /// address at which the code will run.
    #[cfg(target_arch = "x86_64")]
    pub type Ops = dynasmrt::VecAssembler<dynasmrt::x64::X64Relocation>;
    /// dynasm's assembler for the machine that executes, which writes to a vector and is set to the
    /// address at which the code will run.
    #[cfg(target_arch = "aarch64")]
    pub type Ops = dynasmrt::VecAssembler<dynasmrt::aarch64::Aarch64Relocation>;
}
