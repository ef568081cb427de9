from colossal_llama.commands.inspect_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
