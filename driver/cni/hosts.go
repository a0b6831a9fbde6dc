// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/service"
)

// nerdctl's containers ask no resolver of ours: nerdctl writes /etc/hosts for all of them whenever one comes or goes,
// with the addresses of containers. What others have written there it keeps, and keeps first, but for comments: our
// lines are known by their addresses, which are VIPs.
//
// nerdctl lists replicas of a Compose service by its name, too, and musl's resolver prefers the nearest of all addresses
// that a name has: from the lines of others we take the names that are services'. nerdctl writes its lines anew after every
// ADD and DEL, so that Sweep looks at them again.

// labelState is where nerdctl keeps a container's files: ROOT/containers/NAMESPACE/ID.
const labelState = "nerdctl/state-dir"

// hostsFile is the container's /etc/hosts on the host, "" if it has none of nerdctl's.
func (a *attachment) hostsFile() string {
	state := a.Labels[labelState]
	if state == "" {
		return ""
	}
	namespace, id := filepath.Base(filepath.Dir(state)), filepath.Base(state)
	return filepath.Join(state, "..", "..", "..", "etchosts", namespace, id, "hosts")
}

// writeHosts gives the containers of a network, or of all for "", the VIPs of their networks' services.
func (m *Manager) writeHosts(network string) {
	m.writing.Lock()
	defer m.writing.Unlock()
	keys := map[string][]Key{} // by file
	m.mu.Lock()
	for k, a := range m.attached {
		if file := a.hostsFile(); file != "" && !a.Leaving {
			keys[file] = append(keys[file], k)
		}
	}
	m.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	if network == "" {
		maps.DeleteFunc(m.unwritten, func(file, _ string) bool { return keys[file] == nil })
	}
	services := m.Containers.List()
	for file, of := range keys {
		if network != "" && !slices.ContainsFunc(of, func(k Key) bool { return k.Network == network }) {
			continue
		}
		h := hosts{vips: m.VIPs, own: m.addressesOf(of)}
		h.block, h.names = hostsBlock(services, networksOf(of))
		err := h.write(file)
		m.tellOnce(file, err)
		if errors.Is(err, errHeld) {
			return // the other files have the same lock
		}
	}
}

// tellOnce logs why a file could not be written, unless that was so before. The caller holds writing.
func (m *Manager) tellOnce(file string, err error) {
	if err == nil {
		delete(m.unwritten, file)
		return
	}
	if m.unwritten[file] != err.Error() {
		m.Log.WithError(err).Warn("write the services of a container into its /etc/hosts")
	}
	m.unwritten[file] = err.Error()
}

func networksOf(keys []Key) (out []string) {
	for _, k := range keys {
		out = append(out, k.Network)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// addressesOf are a container's own.
func (m *Manager) addressesOf(keys []Key) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, k := range keys {
		if ep, err := m.Driver.Endpoint(context.Background(), NetworkID(k.Network), k.endpoint()); err == nil {
			out[ep.IPv4.Addr()], out[ep.IPv6.Addr()] = true, true
		}
	}
	return out
}

// hostsBlock are the lines of the services of some networks, and all names in them. Names of the first are found first.
func hostsBlock(services []service.View, networks []string) (block []byte, names map[string]bool) {
	var out bytes.Buffer
	names = map[string]bool{}
	for _, network := range networks {
		for _, s := range services {
			if s.Network != network || s.Name == "" {
				continue
			}
			for _, f := range s.Frontends {
				fmt.Fprintf(&out, "%s %s %s.%s\n", f.Addr, s.Name, s.Name, network)
				names[s.Name], names[s.Name+"."+network] = true, true
			}
		}
	}
	return out.Bytes(), names
}

// hosts is what a container's /etc/hosts shall say.
type hosts struct {
	block []byte          // our lines
	names map[string]bool // that are in them
	own   map[netip.Addr]bool
	vips  []netip.Prefix
}

// write replaces our lines of a file, and puts them first. The file stays the same, as it is mounted in the container.
func (h hosts) write(file string) error {
	dir, err := os.Open(filepath.Dir(filepath.Dir(file))) // nerdctl's lock
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := lockSoon(dir); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	had, err := readHosts(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of a container that has its own, or is going
	}
	if err != nil {
		return err
	}
	now := slices.Clone(h.block)
	for line := range bytes.Lines(had) {
		now = append(now, h.keep(line)...)
	}
	if max(len(had), len(now)) > maxHosts {
		return fmt.Errorf("%s has more than %d bytes, which its container has written there: remove them, or make the container anew", file, maxHosts)
	}
	if bytes.Equal(now, had) {
		return nil
	}
	return replace(file, now, len(had))
}

func readHosts(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxHosts+1))
}

// maxHosts is how large a file is that we read: the container may write what it likes, and it is read every second.
const maxHosts = 1 << 20

// replace gives a file of some length another content. At no moment does it lack the lines that stay: whoever is killed in between leaves
// empty lines at most.
func replace(file string, text []byte, had int) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(text) > had { // where there is no room, nothing is written
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, int64(len(text)))
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("make room in %s: %w", file, err)
		}
	}
	whole := slices.Clone(text)
	for len(whole) < had {
		whole = append(whole, '\n')
	}
	if _, err := f.WriteAt(whole, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// How long nerdctl, which holds its lock for some milliseconds, is waited for: it may have been stopped meanwhile, and starts of
// others wait with us. Sweep tries again.
const (
	lockPatience = 500 * time.Millisecond
	lockPoll     = 5 * time.Millisecond
)

var errHeld = errors.New("another process has held it for long")

// lockSoon locks a file that others lock (flock(2)), until it is closed.
func lockSoon(f *os.File) error {
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if time.Now().After(end) {
			return errHeld
		}
	}
}

// keep is what stays of a line of nerdctl's, or of the user's.
func (h hosts) keep(line []byte) []byte {
	fields := strings.Fields(string(line))
	if len(fields) == 0 {
		return line
	}
	addr, err := netip.ParseAddr(fields[0])
	switch {
	case err != nil || h.own[addr] || addr.IsLoopback():
		return line
	case slices.ContainsFunc(h.vips, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(fields), func(name string) bool { return h.names[name] })
	switch len(kept) {
	case len(fields):
		return line
	case 1:
		return nil
	}
	return []byte(kept[0] + "\t" + strings.Join(kept[1:], " ") + "\n")
}
