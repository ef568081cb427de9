from colossal_llama.commands.benchmark import main

if __name__ == "__main__":
    raise SystemExit(main())
