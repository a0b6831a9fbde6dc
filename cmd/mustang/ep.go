// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/driver/link"
)

func epCommand(e env) *cli.Command {
	return noun("ep", "endpoints: the interfaces of containers", epAdd(e), epRemove(e), epList(e))
}

func epAdd(e env) verb {
	return verb{
		name: "add", usage: "attach an interface of a network namespace to the datapath",
		about: "  mustang ep add --ifname=eth0 --netns=/var/run/netns/pod-a",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "ifname", Usage: "`NAME` of the interface inside the namespace"},
			&cli.StringFlag{Name: "netns", Usage: "`PATH` of the namespace, such as /var/run/netns/pod-a or /proc/PID/ns/net"},
			quietFlag("print the address only"),
		},
		run: func(c *cli.Context) error {
			ifname := c.String("ifname")
			if ifname == "" {
				return usagef(c, "--ifname is missing: name the interface inside the namespace, such as --ifname=eth0")
			}
			if err := link.CheckName(ifname); err != nil {
				return usagef(c, "--ifname %q %w", ifname, err)
			}
			netns, err := netnsPath(c)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				added, err := h.AddEndpoint(ctx, ifname, netns)
				if err != nil {
					return err
				}
				if c.Bool("quiet") {
					_, err = fmt.Fprintln(e.stdout, endpointKey(added))
					return err
				}
				return e.say(c, "endpoint %d added: %s\n", added.Number, endpointKey(added))
			})
		},
	}
}

// netnsPath is the path given, in a form that means the same to the daemon.
func netnsPath(c *cli.Context) (string, error) {
	path := c.String("netns")
	if path == "" {
		return "", usagef(c, "--netns is missing: name the namespace, such as --netns=/var/run/netns/pod-a")
	}
	if !strings.Contains(path, "/") {
		return "", usagef(c, "--netns %q: give a path, such as /var/run/netns/%s", path, path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find the namespace %s: %w", path, err)
	}
	for _, self := range []string{"/proc/self/", "/proc/thread-self/"} {
		if rest, ok := strings.CutPrefix(abs, self); ok {
			return fmt.Sprintf("/proc/%d/%s", os.Getpid(), rest), nil
		}
	}
	return abs, nil
}

func epRemove(e env) verb {
	return verb{
		name: "rm", usage: "forget endpoints made by ep add", args: "ADDR...", min: 1, max: -1,
		flags: []cli.Flag{quietFlag("print nothing")},
		run: func(c *cli.Context) error {
			for _, ref := range c.Args().Slice() {
				if _, err := netip.ParseAddr(ref); err != nil {
					return usagef(c, "%q is no address of an endpoint: see mustang ep ls", ref)
				}
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				return each(c.Args().Slice(), func(ref string) error {
					if err := h.RemoveEndpoint(ctx, ref); err != nil {
						return err
					}
					return e.say(c, "endpoint %s removed\n", ref)
				})
			})
		},
	}
}

func epList(e env) verb {
	return verb{
		name: "ls", usage: "list endpoints",
		flags: append(outputFlags(listForms), quietFlag("print addresses only")),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, listForms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				list, err := h.Endpoints(ctx)
				if err != nil {
					return err
				}
				slices.SortStableFunc(list, func(a, b api.Endpoint) int { return cmp.Compare(a.Number, b.Number) })
				return printList(o, listed[api.Endpoint]{
					items: list,
					table: func(wide bool) table { return endpointTable(list, wide) },
					key:   endpointKey,
				})
			})
		},
	}
}

// endpointAddrs are the addresses of an endpoint, IPv4 first.
func endpointAddrs(e api.Endpoint) []string {
	var addrs []string
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			addrs = append(addrs, p.Addr().String())
		}
	}
	if len(addrs) == 0 {
		addrs = []string{"-"}
	}
	return addrs
}

// endpointKey is what an endpoint is referred to by.
func endpointKey(e api.Endpoint) string { return endpointAddrs(e)[0] }

// endpointTable has a row per address. Host says whether the address is the host's own, which no
// endpoint is: the column stays because the article's table has it.
func endpointTable(list []api.Endpoint, wide bool) table {
	t := table{
		title:   fmt.Sprintf("Mustang Endpoint count:%d", len(list)),
		columns: []column{{"Id", 8}, {"IP", 16}, {"Host", 8}, {"IfIndex", 16}, {"LxcMAC", 24}, {"NodeMAC", 0}},
	}
	if wide {
		t.columns[len(t.columns)-1].width = 24
		t.columns = append(t.columns, column{"Container", 16}, column{"Network", 16}, column{"Sandbox", 0})
	}
	for _, e := range list {
		for _, addr := range endpointAddrs(e) {
			row := []string{strconv.FormatUint(uint64(e.Number), 10), addr, "false", strconv.Itoa(e.Index),
				orDash(strings.ToUpper(e.MAC)), orDash(strings.ToUpper(e.HostMAC))}
			if wide {
				row = append(row, orDash(e.Container), orDash(cmp.Or(e.NetworkName, e.NetworkID)), orDash(e.Sandbox))
			}
			t.rows = append(t.rows, row)
		}
	}
	return t
}
