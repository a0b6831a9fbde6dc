// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The engine's own rules drop what they do not know of (FORWARD's policy), and no table of ours can undo that. The engine
// leaves one chain to others, DOCKER-USER, where an accept ends its rules. Ours have the form that iptables
// gives them, so that iptables lists them.
const userChain = "DOCKER-USER"

// comment marks our rules.
const comment = "mustang"

// wildcard stands for all host ends of endpoints; networks are kept apart by our own table.
const wildcard = "mst+"

// CheckFirewall refuses a host whose iptables does not use nftables: rules that we could not write would
// drop what a network with ebpf=off forwards.
func (*Tables) CheckFirewall() error {
	for _, file := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		tables, err := os.ReadFile(file)
		if err != nil {
			continue // without the old iptables there is no such file
		}
		if slices.Contains(strings.Fields(string(tables)), "filter") {
			return fmt.Errorf("ebpf=off: this host's iptables is the legacy one (%s lists filter), whose rules mustang cannot write: "+
				"switch to iptables-nft (update-alternatives --set iptables /usr/sbin/iptables-nft, then reboot), or leave ebpf on", file)
		}
	}
	return nil
}

// through are the devices between which the engine must let packets through.
func through(ends []End) (out []string) {
	for _, e := range ends {
		name := ""
		switch e.Kind {
		case Routed:
			name = wildcard
		case Bridge:
			name = e.Name
		}
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// between is `-i DEVICE -o DEVICE -j ACCEPT` as iptables writes it.
func between(device string) []expr.Any {
	name := append([]byte(device), 0)
	if prefix, ok := strings.CutSuffix(device, "+"); ok {
		name = []byte(prefix)
	}
	return []expr.Any{
		loads(expr.MetaKeyIIFNAME, 1), equals(1, name), loads(expr.MetaKeyOIFNAME, 1), equals(1, name),
		&expr.Counter{}, accepts,
	}
}

// device is what a rule of ours lets packets pass between.
func device(r *nftables.Rule) (string, bool) {
	if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); !ok || text != comment || len(r.Exprs) < 2 {
		return "", false
	}
	c, ok := r.Exprs[1].(*expr.Cmp)
	if !ok {
		return "", false
	}
	if name, exact := bytes.CutSuffix(c.Data, []byte{0}); exact {
		return string(bytes.TrimRight(name, "\x00")), true
	}
	return string(c.Data) + "+", true
}

// users finds the engine's chain of each family that has it.
func users(c *nftables.Conn) (out []*nftables.Chain, err error) {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
				continue
			}
			return nil, err
		}
		for _, ch := range chains {
			if ch.Name == userChain && ch.Table.Name == "filter" {
				ch.Table.Family = family
				out = append(out, ch)
			}
		}
	}
	return out, nil
}

// letThrough makes the rules in the engine's chain those that the ends need.
func letThrough(ends []End) error {
	c, err := nftables.New()
	if err != nil {
		return nil //nolint:nilerr // without nftables there is no such chain
	}
	chains, err := users(c)
	if err != nil {
		if len(ends) == 0 {
			return nil
		}
		return err
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("read %s: %w", userChain, err)
		}
		wanted := through(ends)
		for _, r := range rules {
			name, ours := device(r)
			if !ours {
				continue
			}
			if i := slices.Index(wanted, name); i >= 0 {
				wanted = slices.Delete(wanted, i, i+1)
			} else if err := c.DelRule(r); err != nil {
				return err
			}
		}
		for _, name := range wanted {
			addAccept(c, ch, rules, name)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", userChain, err)
	}
	return nil
}

// addAccept adds our rule after those of the operator, but before the return that older engines end the chain with.
func addAccept(c *nftables.Conn, ch *nftables.Chain, rules []*nftables.Rule, name string) {
	r := &nftables.Rule{
		Table: ch.Table, Chain: ch, Exprs: between(name), UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	}
	if len(rules) > 0 && onlyReturns(rules[len(rules)-1]) {
		r.Position = rules[len(rules)-1].Handle
		c.InsertRule(r)
		return
	}
	c.AddRule(r)
}

func onlyReturns(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return false
}

func isLetThrough(ends []End) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	chains, err := users(c)
	if err != nil {
		return false, err
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return false, err
		}
		for _, name := range through(ends) {
			if !slices.ContainsFunc(rules, func(r *nftables.Rule) bool { had, ours := device(r); return ours && had == name }) {
				return false, nil
			}
		}
	}
	return true, nil
}
