// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/utils"
)

// capabilities are what our plugin makes use of, as far as a runtime has it.
var capabilities = map[string]bool{
	"portMappings": true, "ips": true, "mac": true, "dns": true, "ipRanges": true, "aliases": true, "bandwidth": true,
}

// conflist is a network's file. The keys of nerdctl's let it list and remove the network as one of its own.
type conflist struct {
	CNIVersion    string            `json:"cniVersion"`
	Name          string            `json:"name"`
	NerdctlID     string            `json:"nerdctlID"`
	NerdctlLabels map[string]string `json:"nerdctlLabels"`
	Plugins       []map[string]any  `json:"plugins"`
}

// longestName leaves room for the rest of a file's name, which has 255 bytes.
const longestName = 200

// CheckName refuses what runtimes do not take for a network's name.
func CheckName(name string) error {
	if len(name) > longestName {
		return invalidf("the name %s… of a network has %d characters: choose one of %d at most, for its file", name[:20], len(name), longestName)
	}
	if utils.ValidateNetworkName(name) != nil {
		return invalidf("%q is no name of a network: want letters, digits and . _ -, a letter or digit first", name)
	}
	if name == "host" || name == "none" {
		return invalidf("%q means no network of ours to nerdctl and Docker: choose another name", name)
	}
	return nil
}

// Write makes the file by which runtimes find a network, below dir, and returns its path. A network of that name
// that is there already is an error.
func Write(dir string, n Network, labels map[string]string) (path string, err error) {
	path = filepath.Join(dir, "mustang-"+n.Name+".conflist")
	switch file, err := find(dir, n.Name); {
	case err != nil:
		return "", err
	case file.path != "":
		return "", conflictf("create the network %s: %s has one of this name: choose another, or remove that one with %s network rm", n.Name, file.path, file.tool())
	}
	if labels == nil {
		labels = map[string]string{}
	}
	text, err := json.MarshalIndent(conflist{
		CNIVersion: "1.0.0", Name: n.Name, NerdctlID: NetworkID(n.Name), NerdctlLabels: labels,
		Plugins: []map[string]any{pluginOf(n)},
	}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write the configuration of the network %s: %w", n.Name, err)
	}
	if err := writeFile(path, append(text, '\n')); err != nil {
		return "", fmt.Errorf("write the configuration of the network %s: %w", n.Name, err)
	}
	return path, nil
}

// aside are the names, as a pattern, under which a file is made before it has its own.
const aside = ".mustang-*"

// writeFile makes a whole file or none, under a name that runtimes do not read until it is complete.
func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), aside)) // the pattern is well-formed
	for _, name := range left {
		if info, err := os.Lstat(name); err == nil && time.Since(info.ModTime()) > time.Minute { // whose writer was killed
			_ = os.Remove(name)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), aside)
	if err != nil {
		return err
	}
	defer os.RemoveAll(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// pluginOf writes what conf.network reads.
func pluginOf(n Network) map[string]any {
	p := map[string]any{"type": pluginType, "capabilities": capabilities}
	for key, value := range n.Options {
		p[key] = value
	}
	if n.Internal {
		p["internal"] = true
	}
	if n.IPv6 {
		p["ipv6"] = true
	}
	var sets [][]rangeConf
	for _, r := range n.Ranges {
		c := rangeConf{Subnet: r.Subnet.String()}
		if r.Range.IsValid() {
			c.Range = r.Range.String()
		}
		if r.First.IsValid() {
			c.RangeStart = r.First.String()
		}
		if r.Last.IsValid() {
			c.RangeEnd = r.Last.String()
		}
		if r.Gateway.IsValid() {
			c.Gateway = r.Gateway.String()
		}
		sets = append(sets, []rangeConf{c})
	}
	p["ipam"] = ipamConf{Type: ipamType, Ranges: sets}
	return p
}

// Remove removes the file of a network of ours; a missing one is no error.
func Remove(dir, name string) error {
	file, err := find(dir, name)
	if err != nil || file.path == "" {
		return err
	}
	if !file.ours() {
		return conflictf("remove the network %s: %s has it, which no plugin of mustang's is in: remove it with nerdctl network rm, or the file by hand", name, file.path)
	}
	if err := os.Remove(file.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the configuration of the network %s: %w", name, err)
	}
	return nil
}

// Declared tells whether a file below dir names the network. What cannot be read may well name it.
func Declared(dir, name string) bool {
	file, err := find(dir, name)
	return err != nil || file.path != ""
}

// found is a network's file.
type found struct {
	path    string
	Name    string
	Type    string // of a file with a single plugin
	Plugins []inList
}

// inList is a plugin of a file's.
type inList struct {
	Type         string
	Capabilities map[string]bool
	Limits       // of the plugin bandwidth
}

// tool is the command that removes the network.
func (f found) tool() string {
	if f.ours() {
		return "mustang"
	}
	return "nerdctl"
}

// ours tells whether the network is one of mustang's.
func (f found) ours() bool {
	return f.Type == pluginType || slices.ContainsFunc(f.Plugins, func(p inList) bool { return p.Type == pluginType })
}

// find looks for the file of a network in dir, and in the directories in it, which nerdctl has for the namespaces of
// containerd. Without a path there is none.
func find(dir, name string) (found, error) {
	var files []string
	for _, pattern := range []string{"*", "*/*"} {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return found{}, fmt.Errorf("look for the network %s in %s: %w", name, dir, err)
		}
		files = append(files, matches...)
	}
	for _, file := range files {
		if !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(file)) {
			continue
		}
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return found{}, fmt.Errorf("look for the network %s: %w", name, err)
		}
		c := found{path: file}
		var odd *json.UnmarshalTypeError // of what another plugin shall make sense of
		if err := json.Unmarshal(text, &c); (err == nil || errors.As(err, &odd)) && c.Name == name {
			return c, nil
		}
	}
	return found{}, nil
}
