// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/metrics"
)

// check prints the configuration that a daemon would start with, as a file that says it, and fails where it does not fit the host.
func (e env) check(c *cli.Context) error {
	cfg, err := e.config(c)
	if err != nil {
		return err
	}
	_, origins, err := config.Trace(c.String("config"), e.getenv)
	if err != nil {
		return err
	}
	if c.String("log-level") != "" {
		origins["log_level"] = "--log-level"
	}
	for _, s := range cfg.Settings() {
		origin := origins[s.Key]
		if origin == "" {
			origin = "default"
		}
		if _, err := fmt.Fprintf(e.stdout, "%s = %s  # %s\n", s.Key, s.Value, origin); err != nil {
			return err
		}
	}
	return errors.Join(e.contradictions(cfg)...)
}

// contradictions says what on this host the configuration does not fit. What may still come, such as an engine or a device, is none.
func contradictions(cfg config.Config) []error {
	var out []error
	add := func(key, format string, args ...any) { out = append(out, fmt.Errorf(key+": "+format, args...)) }
	if routes, err := (link.Host{}).Routes(); err != nil {
		out = append(out, err)
	} else {
		out = append(out, overlaps(cfg, routes)...)
	}
	if err := oneOfEachFamily(cfg.ServicePools); err != nil {
		out = append(out, err)
	}
	if err := bpf.Check(cfg.BPFFS); err != nil {
		add("bpffs", "%w", err)
	}
	if cgroup, err := cgroupOf(cfg); err != nil {
		add("cgroup", "%w", err)
	} else if !isCgroup2(cgroup) {
		add("cgroup", "%s is in no cgroup2 file system: leave the key away, or mount one", cgroup)
	}
	if _, unfit, err := (link.Host{}).Uplinks(cfg.Uplinks); err != nil {
		out = append(out, err)
	} else if len(cfg.Uplinks) > 0 {
		for _, why := range unfit {
			add("uplinks", "%s, so that it is no uplink: leave it away", why)
		}
	}
	if cfg.DockerSocket != "" && isOther(cfg.DockerSocket) {
		add("docker_socket", "%s is no socket: name the engine's, or \"off\"", cfg.DockerSocket)
	}
	if err := metricsFree(cfg); err != nil {
		out = append(out, err)
	}
	return out
}

// overlaps says which pools share addresses with where the host sends packets. Of an address pool the blocks that are free are
// used, so only one without any is wrong.
func overlaps(cfg config.Config, routes []netip.Prefix) (out []error) {
	for _, r := range routes {
		if r.Bits() <= 1 { // everything, in one half or two
			continue
		}
		for _, p := range cfg.ServicePools {
			if p.Overlaps(r) {
				out = append(out, fmt.Errorf("service_pools: %s overlaps the host's route to %s: choose another pool, or remove the route", p, r))
			}
		}
		for _, a := range cfg.AddressPools {
			if a.Pool.Overlaps(r) && r.Bits() <= a.Pool.Bits() {
				out = append(out, fmt.Errorf("address_pools: all of %s is covered by the host's route to %s: choose another pool, or remove the route", a.Pool, r))
			}
		}
	}
	return out
}

// oneOfEachFamily refuses what the datapath has no room for.
func oneOfEachFamily(pools []netip.Prefix) error {
	for i, p := range pools {
		same := func(q netip.Prefix) bool { return q.Addr().Is6() == p.Addr().Is6() }
		if j := slices.IndexFunc(pools[i+1:], same); j >= 0 {
			return fmt.Errorf("service_pools has more than one pool of a family (%s and %s): keep one of each", p, pools[i+1+j])
		}
	}
	return nil
}

func cgroupOf(cfg config.Config) (string, error) {
	if cfg.Cgroup != "" {
		return cfg.Cgroup, nil
	}
	return bpf.CgroupRoot()
}

func isCgroup2(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// isOther says that there is something else than a socket at path.
func isOther(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() != os.ModeSocket
}

// metricsFree says that another program is where the metrics are to be shown. A daemon that runs may be there.
func metricsFree(cfg config.Config) error {
	if cfg.Metrics == "" || strings.HasPrefix(cfg.Metrics, "/") {
		return nil
	}
	l, err := listenMetrics(cfg.Metrics)
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, unix.EADDRINUSE) && metrics.Shown(cfg.Metrics) {
		return nil
	}
	return err
}
