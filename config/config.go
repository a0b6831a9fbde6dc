// SPDX-License-Identifier: Apache-2.0

// Package config turns mustang.toml and the environment into a validated Config.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/BurntSushi/toml"
)

// DefaultPath is read when neither the caller nor MUSTANG_CONFIG names a file; it may be missing.
const DefaultPath = "/etc/mustang/mustang.toml"

// Config is everything an operator can set. A Config made by [Load] or [Default] is valid.
type Config struct {
	StateDir     string // absolute; holds the state file
	Socket       string // absolute, at most 107 bytes; the API of the command line
	PluginSocket string // absolute, at most 107 bytes; where Docker finds the network driver
	DockerSocket string // absolute, at most 107 bytes; "" = no Docker
	Containerd   string // absolute; socket of containerd, which need not run
	CNIConfDir   string // absolute; where runtimes find the networks of CNI
	BPFFS        string // absolute; mount point of the BPF file system
	Cgroup       string // absolute; "" = the cgroup2 mount named in mountinfo

	ServicePools []netip.Prefix // masked, apart from each other and from AddressPools, at least one
	AddressPools []AddressPool  // apart from each other and from ServicePools, at least one

	Uplinks []string // names of devices that lead out; none = those of default routes, and every NIC, VLAN, bond, team, tun, WireGuard and PPP device with an address

	LogLevel  string // one of LogLevels
	LogFormat string // one of LogFormats
	Metrics   string // where Prometheus finds the metrics: a loopback ADDRESS:PORT, or the absolute path of a socket; "" = nowhere
}

// AddressPool is a range that networks without a subnet of their own get one from.
type AddressPool struct {
	Pool netip.Prefix // masked
	Size int          // prefix length of each network's block: Pool.Bits() to 30 (IPv4) or 126 (IPv6)
}

// LogLevels are the values of log_level, from the most talkative to the quietest.
var LogLevels = []string{"trace", "debug", "info", "warning", "error"}

// LogFormats are the values of log_format.
var LogFormats = []string{"text", "json"}

// Default returns the configuration of a host whose operator has set nothing.
func Default() Config {
	return Config{
		StateDir:     "/var/lib/mustang",
		Socket:       "/run/mustang/mustang.sock",
		PluginSocket: "/run/docker/plugins/mustang.sock",
		DockerSocket: "/var/run/docker.sock",
		Containerd:   "/run/containerd/containerd.sock",
		CNIConfDir:   "/etc/cni/net.d",
		BPFFS:        "/sys/fs/bpf",
		ServicePools: []netip.Prefix{
			netip.MustParsePrefix("10.96.0.0/16"),
			netip.MustParsePrefix("fd6d:7374:10::/96"),
		},
		AddressPools: []AddressPool{
			{Pool: netip.MustParsePrefix("10.201.0.0/16"), Size: 24},
			{Pool: netip.MustParsePrefix("fd6d:7374:c0de::/48"), Size: 64},
		},
		LogLevel:  "info",
		LogFormat: "text",
	}
}

// Load reads the file at path, lets the MUSTANG_* variables of env replace its settings, and fills
// the rest with defaults. With path "" it reads the file named by MUSTANG_CONFIG, or else
// [DefaultPath] if that exists. An error names every bad key with its value, where it comes from and
// what it could be; the Config is then the zero one.
func Load(path string, env func(string) string) (Config, error) {
	c, _, err := Trace(path, env)
	return c, err
}

// Trace is [Load] that also tells, for every key that is set, the file or the environment variable that does.
func Trace(path string, env func(string) string) (c Config, origins map[string]string, err error) {
	optional := false
	if path == "" {
		path = env("MUSTANG_CONFIG")
	}
	if path == "" {
		path, optional = DefaultPath, true
	}
	text, err := os.ReadFile(path)
	if err != nil && !(optional && errors.Is(err, fs.ErrNotExist)) {
		return Config{}, nil, fmt.Errorf("read the configuration: %w", err)
	}
	r, err := parse(path, string(text))
	if err != nil {
		return Config{}, nil, err
	}
	r.environment(env)
	c, err = r.validate()
	return c, r.origin, err
}

// parse reads TOML into raw settings that remember where they come from.
func parse(path, text string) (*raw, error) {
	var file rawFile
	meta, err := toml.Decode(text, &file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	var unknown []error
	for _, key := range meta.Undecoded() {
		unknown = append(unknown, fmt.Errorf("read the configuration %s: unknown key %s: choose among %s",
			path, key, choices(keys)))
	}
	if len(unknown) > 0 {
		return nil, errors.Join(unknown...)
	}
	r := &raw{rawFile: file, origin: map[string]string{}}
	for _, key := range keys {
		if meta.IsDefined(key) {
			r.origin[key] = path
		}
	}
	return r, nil
}
