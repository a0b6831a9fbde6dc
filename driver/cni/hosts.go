// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/service"
)

// nerdctl's containers ask no resolver of ours: nerdctl writes /etc/hosts for all of them whenever one comes or goes,
// with the addresses of containers. What others have written there it keeps, and keeps first: so do we with VIPs.
const (
	hostsBegin = "# <mustang>\n"
	hostsEnd   = "# </mustang>\n"
)

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
		if err := writeHosts(file, hostsBlock(services, of)); err != nil {
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
				fmt.Fprintf(&out, "%s\t%s %s.%s\n", f.Addr, s.Name, s.Name, network)
			}
		}
	}
	if out.Len() == 0 {
		return nil
	}
	return slices.Concat([]byte(hostsBegin), out.Bytes(), []byte(hostsEnd))
}

// writeHosts replaces our lines of a file, or puts them first. The file stays the same, as it is mounted in the container.
func writeHosts(file string, block []byte) error {
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
	rest := had
	if before, after, found := bytes.Cut(had, []byte(hostsBegin)); found {
		if _, after, found = bytes.Cut(after, []byte(hostsEnd)); !found {
			after = nil
		}
		rest = slices.Concat(before, after)
	}
	now := slices.Concat(block, rest)
	if bytes.Equal(now, had) {
		return nil
	}
	return os.WriteFile(file, now, 0o644)
}
