from colossal_llama.commands.mine_tokens import main

if __name__ == "__main__":
    raise SystemExit(main())
