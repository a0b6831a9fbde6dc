# The test bench: included by the root Makefile.
.PHONY: engines shell check-fakehost

engines: ## install what the test bench needs: packages, Docker engines, Compose
	tests/tools/install --all

shell: build engines ## an interactive shell in a fake host, with Docker and mustang
	tests/fakehost shell

check-fakehost: engines ## check the fake host itself, on both engines
	tests/tools/check-fakehost
