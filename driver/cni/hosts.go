// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/service"
)

// nerdctl's containers ask no resolver of ours: nerdctl writes /etc/hosts for all of them whenever one comes or goes,
// with the addresses of containers. What others have written there it keeps, and keeps first, but for comments: our
// lines are known by their addresses, which are VIPs.

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

// writeHosts gives the containers of a network the VIPs of their networks' services.
func (m *Manager) writeHosts(network string) {
	m.writing.Lock()
	defer m.writing.Unlock()
	networks := map[string][]string{} // by file
	m.mu.Lock()
	for k, a := range m.attached {
		if file := a.hostsFile(); file != "" && !a.Leaving {
			networks[file] = append(networks[file], k.Network)
		}
	}
	m.mu.Unlock()
	services := m.Containers.List()
	for file, of := range networks {
		if !slices.Contains(of, network) {
			continue
		}
		slices.Sort(of)
		if err := writeHosts(file, hostsBlock(services, of), m.VIPs); err != nil {
			m.Log.WithError(err).Warn("write the services of a container into its /etc/hosts")
		}
	}
}

// hostsBlock are the lines of the services of some networks. Names of the first are found first.
func hostsBlock(services []service.View, networks []string) []byte {
	var out bytes.Buffer
	for _, network := range networks {
		for _, s := range services {
			if s.Network != network || s.Name == "" {
				continue
			}
			for _, f := range s.Frontends {
				fmt.Fprintf(&out, "%s %s %s.%s\n", f.Addr, s.Name, s.Name, network)
			}
		}
	}
	return out.Bytes()
}

// writeHosts replaces our lines of a file, and puts them first. The file stays the same, as it is mounted in the container.
func writeHosts(file string, block []byte, vips []netip.Prefix) error {
	dir, err := os.Open(filepath.Dir(filepath.Dir(file))) // nerdctl's lock
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	had, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of a container that has its own, or is going
	}
	if err != nil {
		return err
	}
	now := slices.Clone(block)
	for line := range bytes.Lines(had) {
		if !isVIP(line, vips) {
			now = append(now, line...)
		}
	}
	if bytes.Equal(now, had) {
		return nil
	}
	return os.WriteFile(file, now, 0o644)
}

// isVIP tells whether a line of /etc/hosts is of an address in one of the pools.
func isVIP(line []byte, vips []netip.Prefix) bool {
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return false
	}
	addr, err := netip.ParseAddr(string(fields[0]))
	return err == nil && slices.ContainsFunc(vips, func(p netip.Prefix) bool { return p.Contains(addr) })
}
