// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// keys are all keys of mustang.toml, in the order of the reference file. The environment variable
// of a key is MUSTANG_ and the key in capitals.
var keys = []string{
	"state_dir", "socket", "plugin_socket", "docker_socket", "containerd_socket", "cni_conf_dir", "bpffs", "cgroup",
	"service_pools", "address_pools", "uplinks", "log_level", "log_format", "metrics",
}

// maxSocketPath is what fits into a sockaddr_un, less its final zero.
const maxSocketPath = 107

// rawFile is mustang.toml as written.
type rawFile struct {
	StateDir     string    `toml:"state_dir"`
	Socket       string    `toml:"socket"`
	PluginSocket string    `toml:"plugin_socket"`
	DockerSocket string    `toml:"docker_socket"`
	Containerd   string    `toml:"containerd_socket"`
	CNIConfDir   string    `toml:"cni_conf_dir"`
	BPFFS        string    `toml:"bpffs"`
	Cgroup       string    `toml:"cgroup"`
	ServicePools []string  `toml:"service_pools"`
	AddressPools []rawPool `toml:"address_pools"`
	Uplinks      []string  `toml:"uplinks"`
	LogLevel     string    `toml:"log_level"`
	LogFormat    string    `toml:"log_format"`
	Metrics      string    `toml:"metrics"`
}

type rawPool struct {
	Pool string `toml:"pool"`
	Size int    `toml:"size"`
	// text is a pool from the environment that is not PREFIX=SIZE, kept for the error.
	text string
}

// raw is the settings before validation. A key that is missing in origin was set nowhere.
type raw struct {
	rawFile
	origin map[string]string // key → file or environment variable
	errs   []error
}

// strings are the keys whose value is one string.
func (r *raw) strings() map[string]*string {
	return map[string]*string{
		"state_dir": &r.StateDir, "socket": &r.Socket, "plugin_socket": &r.PluginSocket,
		"docker_socket": &r.DockerSocket, "containerd_socket": &r.Containerd, "cni_conf_dir": &r.CNIConfDir, "bpffs": &r.BPFFS, "cgroup": &r.Cgroup,
		"log_level": &r.LogLevel, "log_format": &r.LogFormat, "metrics": &r.Metrics,
	}
}

// environment lets MUSTANG_* variables replace settings; an empty variable is an unset one.
func (r *raw) environment(env func(string) string) {
	single := r.strings()
	for _, key := range keys {
		name := "MUSTANG_" + strings.ToUpper(key)
		value := env(name)
		if value == "" {
			continue
		}
		r.origin[key] = name
		switch key {
		case "service_pools":
			r.ServicePools = fields(value)
		case "uplinks":
			r.Uplinks = fields(value)
		case "address_pools":
			r.AddressPools = nil
			for _, text := range fields(value) {
				r.AddressPools = append(r.AddressPools, envPool(text))
			}
		default:
			*single[key] = value
		}
	}
}

func fields(list string) []string {
	var out []string
	for item := range strings.SplitSeq(list, ",") {
		out = append(out, strings.TrimSpace(item))
	}
	return out
}

// envPool reads PREFIX=SIZE.
func envPool(text string) rawPool {
	prefix, size, ok := strings.Cut(text, "=")
	n, err := strconv.Atoi(size)
	if !ok || err != nil {
		return rawPool{text: text}
	}
	return rawPool{Pool: prefix, Size: n}
}

// validate makes the Config, or an error that tells of every bad key.
func (r *raw) validate() (Config, error) {
	c := Default()
	r.path("state_dir", r.StateDir, &c.StateDir)
	r.socket("socket", r.Socket, &c.Socket)
	r.socket("plugin_socket", r.PluginSocket, &c.PluginSocket)
	if r.DockerSocket == "off" || r.DockerSocket == "" {
		if r.set("docker_socket") {
			c.DockerSocket = ""
		}
	} else {
		r.socket("docker_socket", r.DockerSocket, &c.DockerSocket)
	}
	r.path("containerd_socket", r.Containerd, &c.Containerd)
	r.path("cni_conf_dir", r.CNIConfDir, &c.CNIConfDir)
	r.path("bpffs", r.BPFFS, &c.BPFFS)
	if r.Cgroup != "" {
		r.path("cgroup", r.Cgroup, &c.Cgroup)
	}
	r.servicePools(&c)
	r.addressPools(&c)
	r.uplinks(&c)
	r.choice("log_level", r.LogLevel, LogLevels, &c.LogLevel)
	r.choice("log_format", r.LogFormat, LogFormats, &c.LogFormat)
	r.metrics(&c)
	if len(r.errs) == 0 {
		r.apart(c)
	}
	if len(r.errs) > 0 {
		return Config{}, errors.Join(r.errs...)
	}
	return c, nil
}

// uplinks are names of devices, which need not exist yet.
func (r *raw) uplinks(c *Config) {
	for _, name := range r.Uplinks {
		if name == "" || len(name) > 15 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' }) {
			r.bad("uplinks", name, "a device name of 1 to 15 characters without blanks, colons and slashes")
			return
		}
	}
	if len(r.Uplinks) > 0 {
		c.Uplinks = r.Uplinks
	}
}

// metrics are shown on this host alone: they name every service and container, and nobody who reads them is asked who
// he is.
func (r *raw) metrics(c *Config) {
	const key = "metrics"
	switch at, err := netip.ParseAddrPort(r.Metrics); {
	case !r.set(key), r.Metrics == "", r.Metrics == "off":
	case strings.HasPrefix(r.Metrics, "/"):
		r.socket(key, r.Metrics, &c.Metrics)
	case err != nil || at.Port() == 0 || at.Addr().Zone() != "":
		r.bad(key, r.Metrics, `must be a loopback address with a port, such as 127.0.0.1:9464, the absolute path of a unix socket, or "off"`)
	case !at.Addr().Unmap().IsLoopback():
		r.bad(key, r.Metrics, "must be a loopback address, such as 127.0.0.1:9464, or the path of a unix socket: the metrics name every service "+
			"and container, and are not protected by a password; to read them from elsewhere, run an agent or a proxy on this host")
	default:
		c.Metrics = at.String()
	}
}

func (r *raw) set(key string) bool { return r.origin[key] != "" }

// bad records that a key has a value it cannot have. want says what it could be.
func (r *raw) bad(key string, value any, want string) {
	origin := r.origin[key]
	if origin == "" {
		origin = "default"
	}
	r.errs = append(r.errs, fmt.Errorf("configuration: %s = %v (%s): %s", key, quoted(value), origin, want))
}

func quoted(value any) any {
	if s, ok := value.(string); ok {
		return strconv.Quote(s)
	}
	return value
}

func choices(names []string) string { return strings.Join(names, ", ") }

func (r *raw) path(key, value string, to *string) {
	if !r.set(key) {
		return
	}
	if !filepath.IsAbs(value) || strings.ContainsRune(value, 0) {
		r.bad(key, value, "must be an absolute path, without a zero byte")
		return
	}
	*to = filepath.Clean(value)
}

func (r *raw) socket(key, value string, to *string) {
	if r.set(key) && len(value) > maxSocketPath {
		r.bad(key, value, fmt.Sprintf("a unix socket's path has at most %d bytes", maxSocketPath))
		return
	}
	r.path(key, value, to)
}

func (r *raw) choice(key, value string, names []string, to *string) {
	if !r.set(key) {
		return
	}
	if !slices.Contains(names, value) {
		r.bad(key, value, "choose among "+choices(names))
		return
	}
	*to = value
}

// The longest prefixes of pools, by the length of their addresses. A service pool holds the block of
// hand-made services and that of a network at least.
var (
	serviceRoom = map[int]int{32: 23, 128: 111}
	addressRoom = map[int]int{32: 30, 128: 126}
)

// pool reads a prefix of addresses to give out. It asks for room, so that a slip such as
// 10.96.0.0/32 shows here and not much later as a pool that is full.
func (r *raw) pool(key, value string, room map[int]int) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(value)
	switch {
	case err != nil:
		r.bad(key, value, "must be a prefix such as 10.96.0.0/16 or fd00:1::/96")
	case p.Addr().Is4In6():
		r.bad(key, value, "write an IPv4 prefix as such")
	case p != p.Masked():
		r.bad(key, value, fmt.Sprintf("has host bits set: the prefix is %s", p.Masked()))
	case !p.Addr().IsGlobalUnicast():
		r.bad(key, value, "must be unicast addresses, neither loopback nor link-local")
	case p.Bits() > room[p.Addr().BitLen()]:
		r.bad(key, value, fmt.Sprintf("is too small: at most /%d", room[p.Addr().BitLen()]))
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

func (r *raw) servicePools(c *Config) {
	const key = "service_pools"
	if !r.set(key) {
		return
	}
	c.ServicePools = nil
	if len(r.ServicePools) == 0 {
		r.bad(key, r.ServicePools, "name at least one prefix")
	}
	for _, text := range r.ServicePools {
		if p, ok := r.pool(key, text, serviceRoom); ok {
			c.ServicePools = append(c.ServicePools, p)
		}
	}
}

func (r *raw) addressPools(c *Config) {
	const key = "address_pools"
	if !r.set(key) {
		return
	}
	c.AddressPools = nil
	if len(r.AddressPools) == 0 {
		r.bad(key, "", "name at least one pool with its block size")
	}
	for _, raw := range r.AddressPools {
		if raw.text != "" {
			r.bad(key, raw.text, "write pools as PREFIX=SIZE, such as 10.201.0.0/16=24")
			continue
		}
		p, ok := r.pool(key, raw.Pool, addressRoom)
		if !ok {
			continue
		}
		// The last two lengths leave no room for a gateway and a container.
		if low, high := p.Bits(), p.Addr().BitLen()-2; raw.Size < low || raw.Size > high {
			r.bad(key, raw.Pool, fmt.Sprintf("size = %d: choose %d to %d", raw.Size, low, high))
			continue
		}
		c.AddressPools = append(c.AddressPools, AddressPool{Pool: p, Size: raw.Size})
	}
}

// apart checks what only shows when all keys are known: that nothing is meant for two purposes.
func (r *raw) apart(c Config) {
	if c.Socket == c.PluginSocket {
		r.bad("plugin_socket", c.PluginSocket, "must differ from socket")
	}
	if c.Metrics == c.Socket || c.Metrics == c.PluginSocket {
		r.bad("metrics", c.Metrics, "must differ from socket and plugin_socket")
	}
	var seen []netip.Prefix
	check := func(key string, p netip.Prefix) {
		for _, other := range seen {
			if p.Overlaps(other) {
				r.bad(key, p, fmt.Sprintf("overlaps the pool %s: choose another", other))
			}
		}
		seen = append(seen, p)
	}
	for _, p := range c.ServicePools {
		check("service_pools", p)
	}
	for _, a := range c.AddressPools {
		check("address_pools", a.Pool)
	}
}
