from colossal_llama.commands.plan import main

if __name__ == "__main__":
    raise SystemExit(main())
