//! Images from programs of this machine, as archives that containerd imports.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::harness::error::{Error, Result};

/// What an image contains.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// Its name with a tag, as in a pod.
    pub(crate) name: &'a str,
    /// Programs with their paths in the image. The shared libraries that they need are added.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Links to one of the programs: the path of the link, and the path it leads to.
    pub(crate) links: Vec<(String, String)>,
    /// The command of containers that state none.
    pub(crate) command: &'a [&'a str],
    /// The user and group.
    pub(crate) user: &'a str,
}

impl Image<'_> {
    /// Writes the image into `folder`, in the format of `docker save`, and returns the path of the archive.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf> {
        let work = folder.join(self.name.replace([':', '/'], "-"));
        let (root, parts) = (work.join("root"), work.join("parts"));
        for folder in [&root, &parts] {
            fs::create_dir_all(folder).map_err(Error::io(format!("creating {}", folder.display())))?;
        }
        self.fill(&root)?;
        let layer = parts.join("layer.tar");
        tar(&root, &layer)?;
        let configuration = json!({
            "architecture": architecture(), "os": "linux",
            "config": {
                "Cmd": self.command, "User": self.user, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer)?)]},
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        for (file, content) in [("config.json", configuration), ("manifest.json", manifest)] {
            fs::write(parts.join(file), content.to_string()).map_err(Error::io(format!("writing {file}")))?;
        }
        let archive = work.join("image.tar");
        tar(&parts, &archive)?;
        Ok(archive)
    }

    fn fill(&self, root: &Path) -> Result<()> {
        let mut libraries = BTreeSet::new();
        for (program, path) in &self.programs {
            place(program, root, path)?;
            libraries.extend(shared_libraries(program)?);
        }
        for library in &libraries {
            place(library, root, &library.display().to_string())?;
        }
        for (link, target) in &self.links {
            let path = inside(root, link)?;
            std::os::unix::fs::symlink(target, &path)
                .map_err(Error::io(format!("linking {}", path.display())))?;
        }
        Ok(())
    }
}

/// Puts a file of this machine at a path of the image, without a copy where both are on one file system.
fn place(file: &Path, root: &Path, path: &str) -> Result<()> {
    let target = inside(root, path)?;
    let file = file.canonicalize().map_err(Error::io(format!("looking for {}", file.display())))?;
    fs::hard_link(&file, &target)
        .or_else(|_| fs::copy(&file, &target).map(drop))
        .map_err(Error::io(format!("copying {} into an image", file.display())))
}

/// A path of the image, whose folder exists.
fn inside(root: &Path, path: &str) -> Result<PathBuf> {
    let path = root.join(path.trim_start_matches('/'));
    let folder = path.parent().unwrap_or(root);
    fs::create_dir_all(folder).map_err(Error::io(format!("creating {}", folder.display())))?;
    Ok(path)
}

/// The shared libraries and the loader that a program names; none of a static one.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output();
    let output = output.map_err(Error::io(format!("running ldd {}", program.display())))?;
    Ok(libraries_of(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths in the output of ldd: `libm.so.6 => /lib/libm.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries_of(output: &str) -> Vec<PathBuf> {
    let paths = output.lines().filter_map(|line| {
        let path = line.rsplit("=> ").next()?.split_whitespace().next()?;
        path.starts_with('/').then(|| path.into())
    });
    paths.collect()
}

fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let what = || format!("tar of {}", folder.display());
    let mut command = Command::new("tar");
    command.args(["--create", "--numeric-owner", "--owner=0", "--group=0", "--file"]);
    command.arg(archive).arg("--directory").arg(folder).arg(".").stdin(Stdio::null());
    let output = command.output().map_err(Error::io(what()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: what(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn digest(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .map_err(Error::io(format!("reading {}", path.display())))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_output_of_ldd() {
        let output = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007fc)\n";
        let expected = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries_of(output), expected.map(PathBuf::from));
        assert_eq!(libraries_of("\tnot a dynamic executable\n"), [] as [PathBuf; 0]);
    }
}
