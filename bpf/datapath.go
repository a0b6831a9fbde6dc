// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

//go:embed mst_lxc.o
var lxcObject []byte

//go:embed mst_sock.o
var sockObject []byte

//go:embed mst_host.o
var hostObject []byte

// pinDir is where libbpf (and so tc) pins maps, below the BPF filesystem.
const pinDir = "tc/globals"

// Datapath is the host's pinned maps and, once loaded, the programs that use them.
type Datapath struct {
	dir  string
	maps map[string]*ebpf.Map // by name without version: "services"
	pins map[*ebpf.Map]string // their names with it
	lxc  *ebpf.Collection
	sock *ebpf.Collection
	host *ebpf.Collection

	sources sources
	linked  linked

	settings sync.Mutex // held while mst_config is read and written
}

// Open opens the pinned maps below the BPF filesystem bpffs. A pin that is missing it makes anew, of the map that attached
// programs of ours still use, else of a new one.
//
// It refuses a bpffs that is not mounted, and pins that somebody other than root could have put there.
func Open(bpffs string) (*Datapath, error) {
	bpffs = filepath.Clean(bpffs)
	if err := Check(bpffs); err != nil {
		return nil, err
	}
	dir := filepath.Join(bpffs, pinDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory %s: %w", dir, err)
	}
	for p := dir; p != bpffs; p = filepath.Dir(p) {
		if err := checkOwner(p); err != nil {
			return nil, err
		}
	}
	d := &Datapath{dir: dir, maps: map[string]*ebpf.Map{}, pins: map[*ebpf.Map]string{}}
	spec, err := loadSpec(sockObject)
	if err != nil {
		return nil, err
	}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName {
			continue
		}
		if err := d.adopt(name, m); err != nil {
			d.Close()
			return nil, err
		}
		opened, err := ebpf.NewMapWithOptions(m, ebpf.MapOptions{PinPath: dir})
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("%w: it was pinned by another build with the same layout version: remove %s while mustang is stopped",
				err, filepath.Join(dir, name))
		}
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("open the map %s: %w", name, explain(err))
		}
		d.maps[shortName(name)], d.pins[opened] = opened, name
	}
	return d, nil
}

// Load loads the programs into the kernel, which verifies them. Loading twice is no error.
func (d *Datapath) Load() error {
	if d.lxc != nil {
		return nil
	}
	var err error
	if d.lxc, err = d.load(lxcObject, "mst_lxc.o"); err != nil {
		return err
	}
	if d.host, err = d.load(hostObject, "mst_host.o"); err != nil {
		return err
	}
	d.sock, err = d.load(sockObject, "mst_sock.o")
	return err
}

func (d *Datapath) load(object []byte, name string) (*ebpf.Collection, error) {
	spec, err := loadSpec(object)
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: d.dir},
	})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, explain(err))
	}
	return coll, nil
}

// Close closes what this process holds; pinned maps and attached programs go on working.
func (d *Datapath) Close() {
	for _, m := range d.maps {
		m.Close()
	}
	for _, c := range []*ebpf.Collection{d.lxc, d.sock, d.host} {
		if c != nil {
			c.Close()
		}
	}
}

// RemoveAll detaches every pinned program and removes every pin of ours: the uninstaller's last step.
func RemoveAll(bpffs string) error {
	dir := filepath.Join(bpffs, pinDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the pins in %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "mst_") {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func loadSpec(object []byte) (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read the BPF object: %w", err)
	}
	// the article's section names tell nothing of the program type
	for _, p := range spec.Programs {
		if role, _, ok := strings.Cut(p.SectionName, "-"); ok && slices.Contains([]string{"lxc", "host", "slave"}, role) {
			p.Type = ebpf.SchedCLS
		}
	}
	return spec, nil
}

// shortName turns mst_services_v1 into services.
func shortName(name string) string {
	name = strings.TrimPrefix(name, "mst_")
	if i := strings.LastIndex(name, "_v"); i > 0 {
		name = name[:i]
	}
	return name
}

// Check refuses a directory that is no BPF file system, or that others than root may write to.
func Check(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("look at the BPF filesystem %s: %w", path, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not a BPF filesystem: mount it with `mount -t bpf bpf %s`, or, inside `ip netns exec`, "+
			"which hides the host's, use `nsenter --net=/run/netns/NAME` instead", path, path)
	}
	return checkOwner(path)
}

// checkOwner refuses a directory in which others than root could replace what is pinned. A sticky one
// is safe: nobody can remove or rename the entries of another there, and each entry is checked itself.
func checkOwner(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at the pin directory %s: %w", path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 || (info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky == 0) || !info.IsDir() {
		return fmt.Errorf("the pin directory %s must be root's and writable by nobody else: `chown root %s; chmod 700 %s`",
			path, path, path)
	}
	return nil
}

// explain adds what to do about the errors a user can mend.
func explain(err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		return fmt.Errorf("%w: run as root, or with the capabilities in mustang.service", err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: this kernel is too old for the eBPF datapath, which needs Linux 6.1 or newer: upgrade it", err)
	}
	return err
}
