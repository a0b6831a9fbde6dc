// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Pins compares the pins of the maps, and tells of those that this build does not know.
func (l *Look) Pins() error {
	for short, m := range l.maps {
		if err := l.pin(short, m); err != nil {
			return err
		}
	}
	unknown, err := l.unknownPins()
	for _, pin := range unknown {
		l.report.Leftover("pin "+pin, "a pin of another build, or of nobody")
	}
	return err
}

func (l *Look) pin(short string, m *ebpf.Map) error {
	pin := l.mapPin(m)
	what := "pin " + pin
	info, err := os.Lstat(pin)
	if errors.Is(err, os.ErrNotExist) {
		l.report.Missing(what, "the map mst_"+short)
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the pin %s: %w", pin, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && !isRoots(info) {
		l.report.Differs(what, "root's, and writable by nobody else", fmt.Sprintf("uid %d, mode %04o", st.Uid, info.Mode().Perm()))
	}
	pinned, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		l.report.Differs(what, "the map mst_"+short, err.Error())
		return nil
	}
	defer pinned.Close()
	if mapID(pinned) != mapID(m) {
		l.report.Differs(what, "the map that the programs use", "another")
	}
	return nil
}

func mapID(m *ebpf.Map) ebpf.MapID {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}

// mapPin is where a map is pinned: under its name of the object, which the kernel keeps 15 bytes of.
func (d *Datapath) mapPin(m *ebpf.Map) string { return filepath.Join(d.dir, d.pins[m]) }

// unknownPins lists those that carry our prefix and are neither maps of this build nor links.
func (d *Datapath) unknownPins() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pins in %s: %w", d.dir, err)
	}
	known := map[string]bool{}
	for _, name := range d.pins {
		known[name] = true
	}
	for name := range sockHooks {
		known["mst_link_"+name] = true
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		ofDevice := strings.HasPrefix(name, "mst_link_") && strings.Contains(name, "-")
		if strings.HasPrefix(name, "mst_") && !known[name] && !ofDevice {
			out = append(out, filepath.Join(d.dir, name))
		}
	}
	return out, nil
}

// Pinned tells whether the maps, and the links that this process has attached, have their pins: somebody may have emptied the BPF file
// system, and detached programs by that.
func (d *Datapath) Pinned() bool {
	d.linked.Lock()
	defer d.linked.Unlock()
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Name()] = true
	}
	for _, name := range d.pins {
		if !there[name] {
			return false
		}
	}
	for pin := range d.linked.pins {
		if !there[filepath.Base(pin)] {
			return false
		}
	}
	return true
}

// linked are the pins of links that this process has attached. Each is noted once it is there, and until before it goes.
type linked struct {
	sync.Mutex
	pins map[string]bool // paths
}

// ForgetLinks has Pinned ask for no link until it is attached again: what is not, its device may have gone.
func (d *Datapath) ForgetLinks() {
	d.linked.Lock()
	defer d.linked.Unlock()
	d.linked.pins = nil
}

func (l *linked) note(pin string) {
	l.Lock()
	defer l.Unlock()
	if l.pins == nil {
		l.pins = map[string]bool{}
	}
	l.pins[pin] = true
}

func (l *linked) forget(pin string) (was bool) {
	l.Lock()
	defer l.Unlock()
	was = l.pins[pin]
	delete(l.pins, pin)
	return was
}

// adopt pins the map again that programs of our pinned links use under that name, where somebody has removed its pin: a new one would
// be empty, and those programs would see nothing of what is written to it. None, or one of another layout, is no error.
func (d *Datapath) adopt(name string, spec *ebpf.MapSpec) error {
	pin := filepath.Join(d.dir, name)
	if _, err := os.Lstat(pin); !errors.Is(err, os.ErrNotExist) {
		return nil // what else is wrong is who opens it told
	}
	links, err := filepath.Glob(filepath.Join(d.dir, "mst_link_*"))
	if err != nil {
		return err
	}
	for _, l := range links {
		m := d.mapOfLink(l, spec)
		if m == nil {
			continue
		}
		defer m.Close()
		if err := m.Pin(pin); err != nil && !errors.Is(err, os.ErrExist) { // another process may have been faster
			return fmt.Errorf("pin %s again: %w", pin, err)
		}
		return nil
	}
	return nil
}

// mapOfLink finds the map of a layout and name that the program of a pinned link uses, nil if it uses none, or is gone meanwhile.
func (d *Datapath) mapOfLink(pin string, spec *ebpf.MapSpec) *ebpf.Map {
	if info, err := os.Lstat(pin); err != nil || !isRoots(info) {
		return nil
	}
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return nil
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return nil
	}
	defer func() { _ = prog.Close() }() // only looked at
	is, err := prog.Info()
	if err != nil {
		return nil
	}
	ids, _ := is.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		if found, err := m.Info(); err == nil && found.Name == kernelName(spec.Name) && spec.Compatible(m) == nil && !d.pinnedAs(found.Name, id) {
			return m
		}
		_ = m.Close()
	}
	return nil
}

// pinnedAs tells whether a map has a pin, that is of another version: of long names the kernel keeps none.
func (d *Datapath) pinnedAs(name string, id ebpf.MapID) bool {
	pins, _ := filepath.Glob(filepath.Join(d.dir, name+"*"))
	return slices.ContainsFunc(pins, func(pin string) bool {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			return false
		}
		defer m.Close()
		return mapID(m) == id
	})
}

// kernelName is what the kernel keeps of the name of a map (BPF_OBJ_NAME_LEN).
func kernelName(name string) string { return name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)] }

// MendPins pins the maps where they are not, makes the pins root's, and removes those that this build does not know.
func (d *Datapath) MendPins() error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("make the pin directory %s: %w", d.dir, err)
	}
	var errs []error
	for _, m := range d.maps {
		errs = append(errs, d.mendPin(m))
	}
	unknown, err := d.unknownPins()
	errs = append(errs, err)
	for _, pin := range unknown {
		errs = append(errs, os.Remove(pin))
	}
	return errors.Join(errs...)
}

// mendPin pins a map aside and renames, so that there is a pin at any time. Nothing is given back to root with chown(2): the
// daemon may not do that, and need not.
func (d *Datapath) mendPin(m *ebpf.Map) error {
	pin := d.mapPin(m)
	pinned, err := ebpf.LoadPinnedMap(pin, nil)
	if err == nil {
		same := mapID(pinned) == mapID(m)
		pinned.Close()
		info, err := os.Lstat(pin)
		if err != nil {
			return fmt.Errorf("look at the pin %s: %w", pin, err)
		}
		if same && isRoots(info) {
			return nil
		}
	}
	own, err := m.Clone() // whose pin is its own business
	if err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	defer own.Close()
	aside := pin + "_new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the pin %s: %w", aside, err)
	}
	if err := own.Pin(aside); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	if err := os.Rename(aside, pin); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", pin, err), os.Remove(aside))
	}
	return nil
}

// isRoots tells whether a pin is root's, and writable by nobody else.
func isRoots(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return !ok || st.Uid == 0 && info.Mode().Perm()&0o022 == 0
}
