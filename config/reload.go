// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Setting is one key of a valid [Config].
type Setting struct {
	Key   string
	Value string // as TOML writes it
	// Live says that a running daemon takes a new value over; the others wait for its next start.
	Live bool
}

// live are the keys that a running daemon takes over. Every other one is where something lies that is open already, or what
// networks and services that exist were made from.
var live = []string{"containerd_socket", "cni_conf_dir", "uplinks", "log_level", "log_format", "metrics"}

// Settings lists every key with the value in force, in the order of the reference file.
func (c Config) Settings() []Setting {
	values := map[string]any{
		"state_dir": c.StateDir, "socket": c.Socket, "plugin_socket": c.PluginSocket, "docker_socket": off(c.DockerSocket),
		"containerd_socket": c.Containerd, "cni_conf_dir": c.CNIConfDir, "bpffs": c.BPFFS, "cgroup": c.Cgroup,
		"service_pools": c.ServicePools, "address_pools": c.AddressPools, "uplinks": c.Uplinks,
		"log_level": c.LogLevel, "log_format": c.LogFormat, "metrics": off(c.Metrics),
	}
	out := make([]Setting, len(keys))
	for i, key := range keys {
		out[i] = Setting{Key: key, Value: written(values[key]), Live: slices.Contains(live, key)}
	}
	return out
}

func off(value string) string {
	if value == "" {
		return "off"
	}
	return value
}

// written is a value as TOML writes it.
func written(value any) string {
	switch v := value.(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case []string:
		return list(v, func(s string) string { return fmt.Sprintf("%q", s) })
	case []netip.Prefix:
		return list(v, func(p netip.Prefix) string { return fmt.Sprintf("%q", p) })
	case []AddressPool:
		return list(v, func(a AddressPool) string { return fmt.Sprintf("{ pool = %q, size = %d }", a.Pool, a.Size) })
	}
	panic(fmt.Sprintf("no key has a value of type %T", value)) // a new key: TestSettingsAreTOML
}

func list[T any](items []T, text func(T) string) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = text(item)
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// Reload is what a running daemon with this configuration goes on with after next was read: next, but for the keys that wait
// for a start, which are told by name and keep their value.
func (c Config) Reload(next Config) (after Config, changed, waiting []Setting) {
	before := c.Settings()
	for i, s := range next.Settings() {
		switch {
		case s == before[i]:
		case s.Live:
			changed = append(changed, s)
		default:
			waiting = append(waiting, s)
		}
	}
	after = c
	after.Containerd, after.CNIConfDir, after.Uplinks = next.Containerd, next.CNIConfDir, next.Uplinks
	after.LogLevel, after.LogFormat, after.Metrics = next.LogLevel, next.LogFormat, next.Metrics
	return after, changed, waiting
}
