// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
)

func networkCreate(e env) verb {
	return verb{
		name: "create", usage: "create a network for nerdctl and other runtimes of CNI", args: "NAME", min: 1, max: 1,
		about: "Writes NAME's file to cni_conf_dir (/etc/cni/net.d). Docker's networks are made by docker network create -d mustang.\n" +
			"Other drivers are modes of mustang: --opt mode=bridge, macvlan, ipvlan or netkit.\n" +
			"  mustang network create web --opt mode=bridge --subnet 10.77.0.0/24\n" +
			"  nerdctl run --network web …",
		flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "opt", Aliases: []string{"o"}, Usage: "an option `KEY=VALUE`, as of docker network create; repeat it"},
			&cli.StringSliceFlag{Name: "subnet", Usage: "a subnet `PREFIX`, one of each family; none takes free ones"},
			&cli.StringSliceFlag{Name: "ip-range", Usage: "`PREFIX` inside of a subnet, where addresses are taken from"},
			&cli.StringSliceFlag{Name: "gateway", Usage: "`ADDR` of a subnet's gateway; by default the first of its ip-range, or of the subnet"},
			&cli.BoolFlag{Name: "ipv6", Usage: "with a subnet of IPv6, too"},
			&cli.BoolFlag{Name: "internal", Usage: "with no way out of the host, and none in"},
			&cli.StringSliceFlag{Name: "label", Usage: "a label `KEY=VALUE` for nerdctl; nerdctl/default-network=true makes it the default network"},
			quietFlag("print the id only"),
		},
		run: func(c *cli.Context) error {
			n, err := networkOf(c)
			if err != nil {
				return err
			}
			labels, err := pairs(c, "label")
			if err != nil {
				return err
			}
			cfg, err := e.config(c)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				if cni.Declared(cfg.CNIConfDir, n.Name) { // before an existing network is made anew
					_, err := cni.Write(cfg.CNIConfDir, n, labels)
					return err
				}
				made, err := h.CNI().CreateNetwork(ctx, n)
				if err != nil {
					return err
				}
				path, err := cni.Write(cfg.CNIConfDir, made, labels)
				if err != nil {
					return errors.Join(err, h.CNI().RemoveNetwork(ctx, n.Name))
				}
				if c.Bool("quiet") {
					return e.say(c, "%s\n", cni.NetworkID(n.Name))
				}
				return e.say(c, "network %s created: %s\n", n.Name, path)
			})
		},
	}
}

// networkOf reads the flags of network create.
func networkOf(c *cli.Context) (cni.Network, error) {
	n := cni.Network{Name: c.Args().First(), IPv6: c.Bool("ipv6"), Internal: c.Bool("internal")}
	if err := cni.CheckName(n.Name); err != nil {
		return n, usagef(c, "%w", err)
	}
	var err error
	if n.Options, err = pairs(c, "opt"); err != nil {
		return n, err
	}
	if _, err := driver.ParseOptions(n.Options); err != nil {
		return n, usagef(c, "--opt: %w", err)
	}
	for _, text := range c.StringSlice("subnet") {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return n, usagef(c, "--subnet %q: want a prefix without host bits, such as 10.77.0.0/24", text)
		}
		if p.IsSingleIP() {
			return n, usagef(c, "--subnet %s holds no container: give a shorter prefix", p)
		}
		if slices.ContainsFunc(n.Ranges, func(r cni.Range) bool { return r.Subnet.Addr().Is4() == p.Addr().Is4() }) {
			return n, usagef(c, "--subnet %s is a second one of its family: give one of IPv4, and one of IPv6", p)
		}
		n.Ranges = append(n.Ranges, cni.Range{Subnet: p})
	}
	for _, text := range c.StringSlice("ip-range") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return n, usagef(c, "--ip-range %q: want a prefix inside of a --subnet", text)
		}
		r := rangeWith(n.Ranges, p.Addr())
		if r == nil {
			return n, usagef(c, "--ip-range %s lies in no --subnet: give that, too", p)
		}
		if r.Range.IsValid() {
			return n, usagef(c, "--ip-range %s is a second one of the subnet %s: give one", p, r.Subnet)
		}
		r.Range = p
	}
	for _, text := range c.StringSlice("gateway") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return n, usagef(c, "--gateway %q: want an address of a --subnet", text)
		}
		r := rangeWith(n.Ranges, a)
		if r == nil {
			return n, usagef(c, "--gateway %s lies in no --subnet: give that, too", a)
		}
		if r.Gateway.IsValid() {
			return n, usagef(c, "--gateway %s is a second one of the subnet %s: give one", a, r.Subnet)
		}
		r.Gateway = a
	}
	return n, nil
}

// rangeWith is the subnet that holds an address.
func rangeWith(ranges []cni.Range, a netip.Addr) *cni.Range {
	for i := range ranges {
		if ranges[i].Subnet.Contains(a) {
			return &ranges[i]
		}
	}
	return nil
}

// pairs reads a flag of KEY=VALUE; nil without any.
func pairs(c *cli.Context, flag string) (map[string]string, error) {
	var out map[string]string
	for _, text := range c.StringSlice(flag) {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, usagef(c, "--%s %q: want KEY=VALUE", flag, text)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	return out, nil
}

func networkRemove(e env) verb {
	return verb{
		name: "rm", usage: "remove networks of CNI", args: "NAME...", min: 1, max: -1,
		about: "A network on which a container is stays. Docker's networks are removed by docker network rm.",
		run: func(c *cli.Context) error {
			cfg, err := e.config(c)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				return each(c.Args().Slice(), func(name string) error {
					list, err := h.Networks(ctx)
					if err != nil {
						return err
					}
					n, err := findNetwork(list, name)
					if err != nil && !cni.Declared(cfg.CNIConfDir, name) {
						return err
					}
					if err == nil && n.ID != cni.NetworkID(n.Name) {
						return fmt.Errorf("network %s is Docker's: remove it with docker network rm", name)
					}
					if err == nil {
						name = n.Name
					}
					if err := h.CNI().RemoveNetwork(ctx, name); err != nil {
						return err
					}
					if err := cni.Remove(cfg.CNIConfDir, name); err != nil {
						return err
					}
					return e.say(c, "network %s removed\n", name)
				})
			})
		},
	}
}
